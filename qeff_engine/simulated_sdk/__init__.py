"""A simulated Cloud AI SDK, installed as a directory like the real one. Imports nothing else of ours.

It takes the real tools' command lines, prints and fails like them, computes a program's numbers with ONNX Runtime and
predicts its time with :mod:`~qeff_engine.simulated_sdk.cost_model`. Weights are rounded to fp16 (or MXFP6) as the card
stores them; arithmetic is fp32, where the card computes in fp16.
"""
