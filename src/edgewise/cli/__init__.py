"""One file per verb; a verb's module is imported only when the verb is called.

A verb is a line in `main.VERBS` and a file `cli/<verb>.py` with one function `command` (or `app`, a `typer.Typer`,
where the verb has verbs of its own, as `ca init`). The function's first docstring line is its help, the paragraph that
starts with `Example:` is printed as it stands, and heavy imports go inside the function. What it prints goes through
`output.Output`; what goes wrong is raised as an `EdgewiseError`, which `main` prints.

    def command(
        job: Annotated[Path, typer.Argument(help="TOML file of the job.")],
        as_json: AsJson = False,
    ) -> None:
        \"\"\"Trains a model on the devices of a running fleet.

        Example:
          edgewise train job.toml --connect tls/127.0.0.1:7447
        \"\"\"
        out = Output(as_json)
"""
