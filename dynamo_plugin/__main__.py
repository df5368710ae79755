"""`python -m dynamo_plugin` is `dynamo-plugin`."""

from __future__ import annotations

from dynamo_plugin.cli import main

if __name__ == "__main__":
    main()
