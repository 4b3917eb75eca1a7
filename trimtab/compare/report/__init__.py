"""A comparison or a sweep as one HTML page that needs nothing but a browser."""

from .page import write_html

__all__ = ["write_html"]
