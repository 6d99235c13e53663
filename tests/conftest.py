from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

# Benchmarks aren't installed. Last on the path, so that an installed cappy_lite isn't hidden by its own sources.
sys.path.append(str(Path(__file__).resolve().parents[1]))

# Examples differ by a thousand times in size, so a time limit on each would say nothing.
settings.register_profile("cappy", deadline=None)
settings.load_profile("cappy")
