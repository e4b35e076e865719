"""Certificate files: which are refused, and how a renewal is taken up."""

import os
import subprocess
from pathlib import Path

import pytest

from anyloop.config import Settings
from anyloop.transport import CertificateFiles, TransportError, certificate_files, edge_credentials, server_credentials
from tests.transport.authority import Authority, with_certificates

PLAIN = Settings(_env_file=None)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def files_in(folder: Path) -> CertificateFiles:
    return CertificateFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")


def test_without_settings_everything_is_plain_text() -> None:
    assert certificate_files(PLAIN) is None
    assert server_credentials(PLAIN) is None
    assert edge_credentials(PLAIN) is None


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYLOOP_TLS_CERT", "")
    monkeypatch.setenv("ANYLOOP_EDGE_TLS_KEY", "")
    assert certificate_files(Settings(_env_file=None)) is None


def test_a_part_of_the_settings_is_refused_with_the_missing_names() -> None:
    with pytest.raises(TransportError, match="ANYLOOP_TLS_KEY and ANYLOOP_TLS_CA is not set"):
        certificate_files(PLAIN.model_copy(update={"tls_cert": Path("tls.crt")}))
    with pytest.raises(TransportError, match="ANYLOOP_EDGE_TLS_CERT and ANYLOOP_EDGE_TLS_KEY"):
        edge_credentials(PLAIN.model_copy(update={"edge_tls_cert": Path("tls.crt")}))


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(TransportError, match=r"cannot read .*tls\.crt"):
        certificate_files(with_certificates(PLAIN, tmp_path / "nowhere"))
    one, other = authority.issue(tmp_path / "one", "one"), authority.issue(tmp_path / "other", "other")
    with pytest.raises(TransportError, match="no certificate with its key"):
        CertificateFiles(one / "tls.crt", other / "tls.key", one / "ca.crt")
    (one / "ca.crt").write_text("not a certificate")
    with pytest.raises(TransportError, match=r"ca\.crt holds no certificates of an authority"):
        files_in(one)


def test_a_renewal_is_taken_up_whole_and_a_broken_one_leaves_the_last_good(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = authority.issue(tmp_path / "pod", "pod")
    files = files_in(folder)
    first = files.current()
    fresh = authority.issue(tmp_path / "fresh", "pod")

    os.replace(fresh / "tls.key", folder / "tls.key")  # a key whose certificate is not there yet
    assert files.current() is first
    assert files.current() is first
    assert sum("the certificates in use stay" in line.getMessage() for line in caplog.records) == 1

    os.replace(fresh / "tls.crt", folder / "tls.crt")
    second = files.current()
    assert second.cert != first.cert
    assert files.current() is second

    (folder / "tls.crt").unlink()
    assert files.current() is second


def test_a_secret_that_kubernetes_turns_around_is_seen(authority: Authority, tmp_path: Path) -> None:
    """A mounted secret is a link to a link to a folder; renewing it renames the middle one."""
    mount = tmp_path / "mount"
    mount.mkdir()
    authority.issue(mount / "..1", "pod")
    (mount / "..data").symlink_to("..1")
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (mount / name).symlink_to(f"..data/{name}")
    files = files_in(mount)
    first = files.current()
    authority.issue(mount / "..2", "pod")
    (mount / "..new").symlink_to("..2")
    os.replace(mount / "..new", mount / "..data")
    assert files.current().cert != first.cert


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(authority: Authority, tmp_path: Path) -> None:
    folder = authority.issue(tmp_path / "pod", "pod")
    locked = folder / "locked.key"
    lock = ["openssl", "pkey", "-in", folder / "tls.key", "-out", locked, "-aes256", "-passout", "pass:secret"]
    subprocess.run(lock, check=True, capture_output=True)
    with pytest.raises(TransportError, match=r"the key .*locked\.key is encrypted"):
        CertificateFiles(folder / "tls.crt", locked, folder / "ca.crt")
