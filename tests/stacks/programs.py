"""The program of each stack, built with what is installed."""

import shutil
import subprocess
import sys
import sysconfig
from functools import cached_property
from pathlib import Path
from typing import Final

import grpc_tools  # type: ignore[import-untyped] # has no types
import pytest

from tests.faults.processes import CHECKOUT

_BUILT: Final = CHECKOUT / "clients" / "typescript" / "build"
_HERE: Final = Path(__file__).parent
_JARS: Final = Path("/usr/share/java")
"""Of Debian's libgrpc-java and what it needs."""
_CLASSES: Final = (
    *("grpc-api", "grpc-context", "grpc-core", "grpc-netty", "grpc-protobuf", "grpc-protobuf-lite", "grpc-stub"),
    *(f"netty-{part}" for part in ("buffer", "codec", "codec-http", "codec-http2", "codec-socks", "common", "handler")),
    *("netty-handler-proxy", "netty-resolver", "netty-transport", "netty-transport-native-unix-common"),
    *("protobuf", "proto-google-common-protos", "guava", "perfmark-api", "geronimo-annotation-1.3-spec"),
)
_IMPORTS: Final = ("-Iprotos", f"-I{Path(grpc_tools.__file__).with_name('_proto')}")
PROGRAMS: Final = ("Python asyncio", "Python threads", "connect-node", "grpc-js", "Ruby", "Java", "buf curl")


class Programs:
    """Builds a stack's program when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        """`folder` gets what is built."""
        self._folder = folder
        self.environment = {"PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'clients' / 'python'}"}

    def command(self, stack: str) -> list[str]:
        """The command, to which address, token, organization and mode are added."""
        match stack:
            case "Python asyncio" | "Python threads":
                return [sys.executable, "-m", "tests.stacks.calls", stack.split()[1]]
            case "connect-node":
                return [installed("node"), str(_BUILT / "calls_with_connect.js")]
            case "grpc-js":
                return [installed("node"), str(_BUILT / "calls_with_grpc_js.js")]
            case "Ruby":
                return [*self.ruby, str(_HERE / "calls.rb")]
            case "Java":
                return [*self.java, "Calls"]
            case _:
                return [sys.executable, "-m", "tests.stacks.buf_curl"]

    def example(self, language: str, text: str, folder: Path) -> list[str]:
        """The command that runs the text of a Ruby script, or of a Java class Example."""
        if language == "Ruby":
            (folder / "example.rb").write_text(text)
            return [*self.ruby, str(folder / "example.rb")]
        (folder / "Example.java").write_text(text)
        return [*self.java, str(folder / "Example.java")]

    @cached_property
    def ruby(self) -> list[str]:
        """Ruby with the stubs, which grpc-tools makes."""
        ruby, generator, stubs = installed("ruby"), installed("grpc_tools_ruby_protoc"), self._folder / "ruby"
        stubs.mkdir(exist_ok=True)
        run(generator, *_IMPORTS, f"--ruby_out={stubs}", f"--grpc_out={stubs}", *protos())
        return [ruby, "-I", str(stubs)]

    @cached_property
    def java(self) -> list[str]:
        """Java with grpc-java, the stubs and the class Calls."""
        java, compiler, protoc = installed("java"), installed("javac"), installed("protoc")
        plugin, sources, classes = installed("grpc_java_plugin"), self._folder / "java", self._folder / "classes"
        jars = [_JARS / f"{name}.jar" for name in _CLASSES]
        if missing := [jar.name for jar in jars if not jar.exists()]:
            pytest.skip(f"{', '.join(missing)} is not installed")
        sources.mkdir(exist_ok=True)
        path = ":".join(map(str, [classes, *jars]))
        stubs = (f"--plugin=protoc-gen-grpc-java={plugin}", f"--java_out={sources}", f"--grpc-java_out={sources}")
        # Debian's proto-google-common-protos is older than ErrorInfo.
        details = (f"-I{sysconfig.get_path('purelib')}", "google/rpc/error_details.proto")
        run(protoc, *_IMPORTS, *stubs, *details, *protos())
        files = [*map(str, sources.rglob("*.java")), str(_HERE / "Calls.java")]
        run(compiler, "-nowarn", "-d", str(classes), "-cp", path, *files)
        return [java, "-cp", path]


def installed(program: str) -> str:
    return shutil.which(program) or pytest.skip(f"{program} is not installed")


def protos() -> list[str]:
    return sorted(str(file.relative_to(CHECKOUT / "protos")) for file in (CHECKOUT / "protos").rglob("*.proto"))


def run(*command: str) -> None:
    subprocess.run(command, cwd=CHECKOUT, check=True)  # noqa: S603 - compilers
