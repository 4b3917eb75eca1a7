"""Scripts that measure trimtab beside its peers, all in one process and taking turns."""
