"""A stand-in for one node of a vLLM prefill/decode pair.

It serves OpenAI's chat API with made-up words, needs no model and no accelerator, and
goes through the stages that a request goes through in vLLM, in the same processes and
the same order: an API process, an engine process with its continuous batching, and a
KV transfer between the engines of two nodes. Each stage is recorded with ``import
omnitrace`` where vLLM's would be.
"""
