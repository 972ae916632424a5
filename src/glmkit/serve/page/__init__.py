"""The web page of the server: conversations, blanks, texts to continue. A client of the server's own API."""

from .mount import mount_page
from .paths import is_page_path

__all__ = ["is_page_path", "mount_page"]
