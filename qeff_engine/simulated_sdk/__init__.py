"""A simulated Cloud AI SDK, installed as a directory like the real one. Imports nothing else of ours.

It takes the real tools' command lines, prints and fails like them, computes a program's numbers with ONNX Runtime and
predicts its time. In reading order:

* ``install`` makes the directory; ``devices`` says what is in it, ``occupancy`` what of it is taken,
  ``device_locks`` who asked to have it alone.
* ``compiler_cli``, ``options``, ``side_files``, ``refusal``: the command line and its refusals. ``compiler``: its
  steps, in ``onnx_reading``, ``partitions``, ``program_work``, ``quantized_products``, ``static_values``,
  ``graph_checks``, ``shapes``, ``bindings``, ``node_precision``, ``half_precision``, ``sentinels``, ``matmul_weights``,
  ``lowering``, ``constants``, ``qpc_container``.
* ``runtime`` and ``descriptor`` are the modules ``qaicrt`` and ``QAicApi_pb2``; ``execution`` computes, ``mx_formats``
  rounds.
* ``op_records`` finds what a graph does, in the words of ``operations``; ``cost_model`` predicts how long that takes,
  with the numbers of ``cost_parameters``; ``virtual_clock`` says when calls begin and end.
* ``runner_cli`` runs a program and measures its pace: ``runner_options``, ``runner_inputs``, ``pacing``,
  ``paced_programs``. ``configurator_cli`` does so for many configurations: ``configurator_options``,
  ``configurator_search``.
* ``util_cli``, ``version_cli``, ``qpc_cli``: the other tools; ``command_options`` reads their command lines.

What differs from a card: weights are stored as the card stores them (fp16, MXFP6) and retained states too (fp16,
MXINT8), and every operator's result is rounded to fp16, but inside an operator arithmetic is fp32, in another order
than a card's. Calls are computed one after another, but overlap by the simulated clock. All of a program's memory is
taken at activation, none at load. A program sliced over several devices computes as one and only its predicted time
differs; so does a pipeline, whose parts' times add up. Not simulated: quantization profiles, other targets than AI 100,
profiling output.
"""
