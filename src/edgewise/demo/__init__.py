"""The main job on one machine, end to end: a fleet starts, trains, plans, serves, survives, stays good, reports.

    report = await run_demo(DemoSettings(), show, Path("demo-report"))

Each stage is a file; `scenario.py` has the numbers and what they share. Everything goes through what a user has too:
processes started by the command line, an operator's connection, the inference endpoint.
"""
