"""A dry run: is this job valid on N GPUs, and what would it take?

    python -m lighthouse.titan.plan --gpus 8 --job.config_file X.toml [any trainer flag]

Nothing is started and no GPU is needed. It ends with 2 where the trainer would refuse the job, or a
stage would not fit into memory. ``--device`` names the kind of GPU, or ``cpu``; ``--json``
prints everything for programs. The estimate is that of ``lighthouse/cost/``; validation,
checkpoints and waiting for data are not in it. What it does not cover is left blank, with the
reason.
"""

import argparse
import json
from dataclasses import asdict

from lighthouse.cost.rates import CPU, devices
from lighthouse.refusal import refuse


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lighthouse.titan.plan",
        allow_abbrev=False,
        description="Validate a job for N GPUs without having them, and estimate what it takes.",
        epilog="All other flags are the trainer's, --job.config_file above all.",
    )
    parser.add_argument("--gpus", type=int, required=True, help="GPUs in all")
    known = ", ".join([*devices(), CPU])
    parser.add_argument("--device", default="h100", help=f"{known}; of others nothing is estimated")
    parser.add_argument(
        "--survey",
        metavar="FILE",
        help="what documents leave of attention: JSON of python -m lighthouse.data check",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options, trainer = parser.parse_known_args(args)
    if not 1 <= options.gpus < 1 << 31:
        parser.error(f"--gpus {options.gpus}: must be at least 1 and below 2 ** 31")

    # Not imported above: it takes seconds.
    from lighthouse.titan.data.tokenizer import build_tokenizer
    from lighthouse.titan.plan.job import machine_of, parse, plan
    from lighthouse.titan.plan.table import table

    try:
        job_config = parse(trainer, machine_of(options.device, options.gpus))
        if job_config.model.name == "llama3":
            build_tokenizer(job_config)  # says what it does to texts
        result = plan(job_config, options.gpus, options.device, options.survey)
    except ValueError as error:
        refuse(error)
    print(json.dumps(asdict(result), indent=1) if options.json else table(result), flush=True)
    if result.misfits:
        refuse("; ".join(result.misfits))


if __name__ == "__main__":
    main()
