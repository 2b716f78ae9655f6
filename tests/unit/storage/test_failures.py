from __future__ import annotations

import pytest

from scanvit.storage.credentials import credentials_from
from scanvit.storage.failures import explain
from scanvit.storage.remote import parse_remote

KEYS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_ENDPOINT_URL": "https://s3.example.org", "AWS_REGION": "us-east-1"}
DENIED = "When reading information for key '{}' in bucket '{}': AWS Error ACCESS_DENIED during HeadObject operation"


def said(text: str, remote: str) -> str:
    return explain(text, parse_remote(remote), credentials_from(KEYS, "s3")).message


@pytest.mark.parametrize("bucket", ["lossless", "classlabels", "ssl", "my-ssl"])
def test_a_refused_key_is_no_matter_of_tls_whatever_the_bucket_is_called(bucket: str) -> None:
    assert "refused the credentials" in said(DENIED.format("ssl/1.png", bucket), f"s3:{bucket}/ssl")


@pytest.mark.parametrize("text", ["curlCode: 35, SSL connect error", "SSL_ERROR_SYSCALL in connection", "SSLError(bad handshake)", "x509: unknown authority"])
def test_what_tls_says_is_told_as_such(text: str) -> None:
    assert "No secure connection" in said(text, "s3:ssl/lossless")
