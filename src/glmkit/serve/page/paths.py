"""Requests that are the page's own."""

# What a browser asks for while the page is open; the rest of Gradio's routes (uploads, files, descriptions of its API)
# is closed.
_READ = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/gradio_api/queue/data")
_READ_UNDER = ("/assets/", "/static/", "/svelte/")
_WRITE = ("/gradio_api/queue/join",)


def is_page_path(method: str, path: str) -> bool:
    """True for a request that belongs to the page. These need no key: the model is reached through the API alone."""
    if method in ("GET", "HEAD"):
        return path in _READ or path.startswith(_READ_UNDER)
    return method == "POST" and path in _WRITE
