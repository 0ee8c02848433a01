"""A vLLM server as the engine; vLLM itself is never imported.

engine    `VLLMEngine`: the `Engine` protocol          adapters  LoRA adapters, loaded and unloaded
server    its HTTP interface, our errors              weights   full weights, replaced and proved
direct    the connections                             fitting   files that vLLM would take and must not
stream    a sample that comes token by token          metrics   its gauges
"""

from rlt_teacher_server.engine.vllm.engine import VLLMEngine

__all__ = ["VLLMEngine"]
