"""`simulate`, `plan`, `serve` as functions of a program or a notebook; the verbs print what these return.

    task = InMemoryTask(Net, split_examples(x, y, 6), test=(x_test, y_test))     # in_memory_task.py: own module, own data
    run = simulate(task, rounds=10)                                              # federated_run.py: rounds in virtual time
    found = plan(run, x_test, y_test, policy={"raw_may_reach": "device"})        # model_plan.py: where it should run
    with serve(run) as endpoint:                                                 # local_endpoint.py: over HTTP, here
        endpoint.infer(x_test[:1])

`from edgewise import simulate, plan, serve, …` gives the same names, each imported when it is first asked for.
"""
