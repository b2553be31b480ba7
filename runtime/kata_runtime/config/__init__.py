"""Configuration: `load()` for this machine's, `Config.default()` for none; see docs/configuration.md."""

from kata_runtime.config.load import DEFAULT_PATHS, load
from kata_runtime.config.model import Config

__all__ = ["DEFAULT_PATHS", "Config", "load"]
