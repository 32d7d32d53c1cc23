"""The table of docs/cost_model.md: what the model says beyond what was run.

python benchmarks/far_table.py
"""

from lighthouse.titan.plan import Plan, parse, plan

BASE = "--job.config_file train_configs/paper/cp8_1m_k4096.toml --training.loss_chunk_tokens 65536"
MILLION = 2**20

# Tokens of a sequence, context-parallel degree, GPUs.
POINTS = (
    (MILLION, 8, 8),
    (MILLION, 8, 32),
    (2 * MILLION, 16, 16),
    (4 * MILLION, 32, 32),
    (8 * MILLION, 64, 64),
    (16 * MILLION, 64, 64),
)


def estimate(seq_len: int, degree: int, gpus: int, device: str) -> Plan:
    """One sequence for each group of ranks a step."""
    flags = f"--training.seq_len {seq_len} --parallelism.context_parallel_degree {degree}"
    # k is shared out over two chunks a rank, each a whole number of strata.
    strata = f"--lighthouse.stratum {min(128, 4096 // (2 * degree))}"
    job = parse([*BASE.split(), *flags.split(), *strata.split(), "--training.global_batch_size=-1"])
    return plan(job, gpus, device)


def table(device: str) -> str:
    lines = [
        "| tokens a sequence | degree | GPUs | S | seconds a step | tokens/s of each | GiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for seq_len, degree, gpus in POINTS:
        result = estimate(seq_len, degree, gpus, device)
        stage, (rows,) = result.stages[0], result.gathered_len
        lines.append(
            f"| {seq_len:,} | {degree} | {gpus} | {rows:,} | {stage.step_seconds:.1f} "
            f"| {stage.tokens_per_second:,.0f} | {stage.memory_gib:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table("h200"))
