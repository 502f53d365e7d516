"""A real S3-compatible server for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import s3fs
from moto.server import ThreadedMotoServer


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a server in this process, on a free port; the environment points at it."""
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    _, port = running.get_host_and_port()
    address = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", address)
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield address
    running.stop()


@pytest.fixture(scope="session")
def files(server: str) -> s3fs.S3FileSystem:
    """The server's files; there is one bucket."""
    found = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    found.mkdir("bucket")
    return found
