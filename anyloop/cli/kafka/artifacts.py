"""The broker's jars: brought once from Maven's repository into a cache outside any checkout."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import uuid
from pathlib import Path

from anyloop.cli.exits import CommandError

POM = Path(__file__).with_name("pom.xml")
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_DOWNLOAD_SECONDS = 600


def broker_version() -> str:
    """The version of Apache Kafka that `pom.xml` pins."""
    found = re.search(r"<artifactId>kafka_2\.13</artifactId>\s*<version>([^<]+)</version>", POM.read_text())
    assert found is not None
    return found[1]


def java() -> str:
    """The path of a Java 17 or later. Raises CommandError where there is none."""
    home = os.environ.get("JAVA_HOME", "")
    program = shutil.which("java", path=f"{home}/bin") if home else None
    program = program or shutil.which("java")
    if program is None:
        raise CommandError("a local Kafka broker needs Java 17 or later: apt-get install openjdk-17-jre-headless")
    shown = subprocess.run([program, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', shown)
    if version is None or int(version[1]) < 17:
        raise CommandError(f"a local Kafka broker needs Java 17 or later, but {program} says: {shown.strip()}")
    return program


def jars() -> Path:
    """The folder of the broker's jars, downloaded first where it is missing. Processes may call it at once.

    The cache is `$XDG_CACHE_HOME/anyloop` (else `~/.cache/anyloop`), one folder for each content of `pom.xml`. Raises
    CommandError without Maven, or when the download fails.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anyloop"
    digest = hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
    folder = cache / f"kafka-{broker_version()}-{digest}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _download(cache, folder)
    return folder


def _download(cache: Path, folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise CommandError("the jars of the Kafka broker come by Maven: apt-get install maven, or set ANYLOOP_LOG_URL")
    work = cache / f".tmp-{uuid.uuid4().hex}"
    work.mkdir()
    try:
        shutil.copyfile(POM, work / "pom.xml")
        command = [maven, "-q", "-B", _PLUGIN, "-DincludeScope=runtime", f"-DoutputDirectory={work / 'jars'}"]
        try:
            done = subprocess.run(
                command, cwd=work, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise CommandError(f"Maven brought no broker within {_DOWNLOAD_SECONDS} seconds; try again") from error
        if done.returncode:
            raise CommandError(f"Maven could not bring Apache Kafka {broker_version()}:\n{done.stdout[-2000:]}")
        (work / "jars").rename(folder)  # whole, or not at all
    finally:
        shutil.rmtree(work, ignore_errors=True)
