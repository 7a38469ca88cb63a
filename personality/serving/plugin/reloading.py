"""What vLLM leaves undone when it reloads weights: a packed copy of an output layer that shares the embedding's."""

from __future__ import annotations

from typing import Any


def extend_reloading(worker: type[Any]) -> None:
    """Make a class of workers pack output layers again after `reload_weights`.

    On the processor a linear layer computes with a packed copy of its weights. Where output layer and embedding are
    tied, a checkpoint has the embedding only: vLLM loads and packs that anew, and the output layer goes on computing
    with the copy that it made when the server was started. On other devices there is no copy, and this does nothing.
    """
    reload_weights = worker.reload_weights

    def reload_and_pack(self: Any, *args: Any, **options: Any) -> None:
        reload_weights(self, *args, **options)
        pack_again(self.model_runner.get_model())

    worker.reload_weights = reload_and_pack


def pack_again(model: Any) -> list[str]:
    """Pack the weights of every output layer and embedding that has a packed copy; their names."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    found = []
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, VocabParallelEmbedding) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)
            found.append(name)
    return found
