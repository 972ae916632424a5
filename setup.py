"""The part of the build that pyproject.toml cannot say.

`recipes/` is shipped as package data of glmkit, and the kernels are compiled where there is a C compiler.
"""

import hashlib
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

NATIVE = Path("src/glmkit/quant/native")
# As in quant/native/build.py.
SOURCES = ("kern.c", "level.h", "amx.h", "attend.h", "rows.h", "decode.h", "pack.h", "pool.h", "read.h")
LOST = "no kernels were compiled: INT8 and INT4 run through PyTorch, several times slower, until there is a C compiler"


class BuildKernels(build_ext):
    """The usual build; without a compiler it says what is lost, and the installation goes on."""

    def build_extension(self, ext: Extension) -> None:
        """Compile one extension."""
        try:
            super().build_extension(ext)
        except Exception:
            self.warn(LOST)
            raise  # of an optional extension this is a warning, too


def source_hash() -> str:
    """The name of this version of the source, which the library carries."""
    return hashlib.sha256(b"".join((NATIVE / name).read_bytes() for name in SOURCES)).hexdigest()[:16]


setup(
    packages=[*find_packages("src"), "glmkit.recipes", "glmkit.recipes.pretrain"],
    package_dir={"": "src", "glmkit.recipes": "recipes"},
    package_data={
        "glmkit": ["py.typed"],
        "glmkit.recipes.pretrain": ["*.yaml"],
        "glmkit.quant.native": [*SOURCES],
    },
    ext_modules=[
        Extension(
            "glmkit.quant.native._kern",
            [str(NATIVE / SOURCES[0])],
            depends=[str(NATIVE / name) for name in SOURCES],
            define_macros=[("GLM_EXTENSION", None), ("GLM_SOURCE", f'"{source_hash()}"')],
            extra_compile_args=[
                "-std=gnu11",
                "-O2",
                "-g0",
                "-ffp-contract=off",
                "-pthread",
                "-fvisibility=hidden",
                "-w",
            ],
            py_limited_api=True,
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
