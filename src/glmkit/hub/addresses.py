"""Single files by their address: of the data sets of Hugging Face, and of any other host."""

import dataclasses

from .transfer import RemoteFile, Site, announced_size


def is_offline() -> bool:
    """True where HF_HUB_OFFLINE forbids every request."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def data_file(repository: str, path: str, step: str) -> tuple[Site, RemoteFile]:
    """A file of a data set on Hugging Face, or on the mirror that HF_ENDPOINT names. step: what to do without it."""
    from huggingface_hub import constants

    site = Site(constants.ENDPOINT, step)
    return site, RemoteFile(path, f"{site.address}/datasets/{repository}/resolve/main/{path}")


def sized(site: Site, file: RemoteFile) -> RemoteFile:
    """The file with the size that its host announces, None where it says none. Raises HubError."""
    return dataclasses.replace(file, size=announced_size(site, file))
