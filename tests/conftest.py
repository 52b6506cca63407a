"""The suite sees no Hub but the loopback one, whatever the caller's shell says.

The Hub client reads its environment once, when it is imported, so this stands here and not in a
fixture: a caller's HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT or HF_HOME must neither break a test nor be
used by one. The home folder is an empty one, so that no login and no cached model of the caller is seen;
the endpoint is one where nobody answers, so that a test which would need the network fails.
"""

from __future__ import annotations

import os
import sys
import tempfile

OF_THE_HUB = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_", "DIFFUSERS_")

if "huggingface_hub" in sys.modules:
    raise RuntimeError("huggingface_hub was imported before the tests set its environment")
for _name in [name for name in os.environ if name.startswith(OF_THE_HUB)]:
    del os.environ[_name]
_home = tempfile.TemporaryDirectory(prefix="editforge-hub-home-")
os.environ["HF_HOME"] = _home.name
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
