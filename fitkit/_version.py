"""Version of the installed distribution."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fitkit-body")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+checkout"
