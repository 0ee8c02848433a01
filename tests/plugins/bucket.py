"""A server that speaks S3 (moto's) over real HTTP, in this process, and stores in buckets of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from rlt_jobs.store.files import Store


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of the server. The AWS variables are set for this process and its children: any key will do."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer  # slow to import: only who needs it waits

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ACCESS_KEY_ID", "test")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patched.setenv("AWS_EC2_METADATA_DISABLED", "true")  # no look for credentials outside
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def s3_files(s3_endpoint: str) -> Any:
    """Who makes the buckets: one for all, since each client of botocore reads its models and certificates anew."""
    import s3fs

    return s3fs.S3FileSystem(endpoint_url=s3_endpoint, skip_instance_cache=True)


@pytest.fixture
def s3_url(s3_files: Any) -> str:
    """A prefix in a new bucket."""
    bucket = f"rlt-{uuid.uuid4().hex}"
    s3_files.mkdir(bucket)
    return f"s3://{bucket}/store"


@pytest.fixture
def bucket_store(s3_url: str, s3_endpoint: str) -> Store:
    return Store(s3_url, endpoint_url=s3_endpoint)
