"""Inference engines behind contracts.protocols.Engine: vLLM and transformers."""
