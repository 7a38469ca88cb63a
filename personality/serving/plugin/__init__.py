"""A plugin of vLLM: steering of a running server, and switching it from one version to another without a restart.

Runs inside vLLM's processes (`VLLM_PLUGINS=persona`); imports the standard library, torch, safetensors and, inside
functions, vLLM and FastAPI, and of this package only what keeps to that.
"""
