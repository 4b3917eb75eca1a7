"""STEER's negative prompts inside a composite model: kept in step with the requests that name them."""
