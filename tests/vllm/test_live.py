"""A real vLLM that answers while a behavior is trained, and is taken back at the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from personality.live.publisher import Publisher
