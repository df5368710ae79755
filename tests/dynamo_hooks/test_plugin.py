"""What the adapters cost before one of them reads a model."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_adapters_imports_no_framework() -> None:
    code = (
        "import sys\n"
        "import dynamo_plugin\n"
        "registry = dynamo_plugin.get_registry()\n"
        "kinds = [registry.load('adapter', name) for name in registry.names('adapter')]\n"
        "ours = [kind for kind in kinds if kind.__module__.startswith('dynamo_hooks.')]\n"
        "assert len(ours) == 5, ours\n"
        "assert not any(kind().supports(object()) for kind in ours)\n"
        "foreign = {'flax', 'jax', 'timm', 'torchvision', 'transformer_lens', 'transformers'}\n"
        "assert not foreign & set(sys.modules), foreign & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
