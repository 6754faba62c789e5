"""YAML files that are parsed once per process, however many configurations are composed of them."""

from __future__ import annotations

import copy
import os
from dataclasses import replace

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_loader import ConfigLoader
from hydra.plugins.config_source import ConfigResult

_READ: dict[tuple[str, int, int], ConfigResult] = {}
"""File, time of its last change and size → what it holds."""


class RememberedFiles(FileConfigSource):
    """A folder of configs. Hydra parses a file anew for every composition, which takes a third of its time."""

    def load_config(self, config_path: str) -> ConfigResult:
        file = os.path.realpath(os.path.join(self.path, self._normalize_file_name(config_path)))
        try:
            stat = os.stat(file)
        except OSError:
            return super().load_config(config_path)  # says that it is not there
        key = (file, stat.st_mtime_ns, stat.st_size)
        if key not in _READ:
            _READ[key] = super().load_config(config_path)
        found = _READ[key]
        return replace(
            found,
            config=copy.deepcopy(found.config),  # Hydra takes the defaults list out of it
            header=dict(found.header),
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
        )


def remember_files(configs: ConfigLoader) -> None:
    """Let a loader's folders keep what they have parsed."""
    for source in configs.get_sources():
        if type(source).__name__ == FileConfigSource.__name__:  # Hydra loads its plugins as modules of their own
            source.__class__ = RememberedFiles
