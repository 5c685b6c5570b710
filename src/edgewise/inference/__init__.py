"""Running a plan together: profiles in, answers out, by the deadline whatever dies.

    profiler.py        measures segments, codecs and overhead of a graph on this node     -> planning's `Profile`
    session.py         one request as a pure step: deadline, hedge, fallback              read this first
    serving_node.py    the device's `ServingNode`: many models, one thread, one budget
    model_server.py    one of its models: prepare, activate, infer, streams               effects of `session.py`
    stage_server.py    the edge's and cloud's `StageHost`: answers `stage` requests
    stages.py          one ONNX Runtime session per stage, with time dilation; what is raw stays raw
    streams.py         state that a stage keeps between the requests of a stream
    gates/             where a request may end: filter, exit; a file each
    accuracy.py        predicted against measured

A request: `model_server` → `request_driver` (drives `session`) → `worker` → `stages` → `cuts` → `stage_server` at the next
site. The HTTP endpoint is `service/open_inference.py`. Import from the modules; nothing heavy is imported here.
"""
