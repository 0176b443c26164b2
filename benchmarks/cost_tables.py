"""Tables of [`~benchmarks.tables`] of what a step, the head or a run costs."""

from benchmarks.irl_step import time_against
from benchmarks.seeds import read_json
from trl_irl.evaluation.rendering import markdown


def _ratios(cell: dict, cells: list[dict], base: str, *same: str) -> list[str]:
    """A cell's time and memory against those of the variant `base`, of the cell that has the `same` as it."""
    (one,) = (x for x in cells if x["variant"] == base and all(x[key] == cell[key] for key in same))
    return [f"{cell[key] / one[key]:.2f}" for key in ("seconds", "peak_mib")]


def head_cpu() -> str:
    """The head alone: its time against that of its bare products, by shape."""
    cells = read_json("head_cpu.json")
    shapes = list(dict.fromkeys((cell["tokens"], cell["hidden"], cell["vocab"]) for cell in cells))
    least = {(cell["head"], cell["tokens"], cell["hidden"], cell["vocab"]): cell["least"] for cell in cells}
    rows = [["tokens x hidden x vocabulary", *(f"{n:,} x {h:,} x {v:,}" for n, h, v in shapes)]]
    for head in dict.fromkeys(cell["head"] for cell in cells):
        pairs = [(least[head, *shape], least["bare products", *shape]) for shape in shapes]
        rows.append([head, *(f"{1000 * time:.0f} ms, {time / base:.2f}x" for time, base in pairs)])
    return markdown(rows, left=1)


def objective_cost() -> str:
    """Time and memory of a step by objective, against likelihood's."""
    cells = read_json("objectives_step_cpu.json")
    rows = [
        [
            f"`{cell['variant'].split(',')[0]}`{''.join(cell['variant'].partition(',')[1:])}",
            f"{cell['seconds']:.2f}",
            time_against(cell, cells[0]),
            _ratios(cell, cells, "nll")[1],
        ]
        for cell in cells
    ]
    return markdown([["objective", "s/step", "time against nll", "memory against nll"], *rows], left=1)


def real_model_step() -> str:
    """Time and memory of a step of SmolLM2-135M's sizes, in float32 and under bfloat16's autocast."""
    cells = read_json("smollm2_step_cpu.json")
    rows = []
    for cell in cells:
        ratios = _ratios(cell, cells, "SFTTrainer", "precision")
        rows.append([cell["precision"], cell["variant"], f"{cell['seconds']:.1f}", f"{cell['peak_mib']:.0f}", *ratios])
    return markdown(
        [["precision", "trainer", "s/step", "MiB", "time against SFT", "memory against SFT"], *rows], left=2
    )


def step_cpu() -> str:
    """Time and memory of a step of IRLTrainer, TRL's SFTTrainer and full logits."""
    cells = read_json("irl_step_cpu.json")
    rows = []
    for cell in cells:
        ratios = _ratios(cell, cells, "SFTTrainer", "vocab")
        numbers = [f"{cell['seconds']:.3f}", f"{cell['peak_mib']:.0f}", f"{cell['beyond_states_mib']:.0f}"]
        rows.append([f"{cell['variant']}, vocabulary {cell['vocab']:,}", *numbers, *ratios])
    header = ["variant", "s/step", "peak MiB", "beyond states MiB", "time vs SFT", "memory vs SFT"]
    return markdown([header, *rows], left=1)


def seq2seq_step() -> str:
    """Time and memory per row of encoder-decoder training, against transformers' trainer."""
    rows = []
    sizes = {
        "mt5_vocabulary": "vocabulary 250,112",
        "mt5_auto": "vocabulary 250,112, `auto`",
        "t5_vocabulary": "32,128",
        "small": "32,128, T5 small",
        "small_32": "32,128, T5 small, 32 rows",
    }
    for name, told in sizes.items():
        cells = read_json(f"seq2seq_step_{name}.json")
        for cell in cells:
            per_row = [x["seconds"] / x["rows_per_step"] for x in (cell, cells[0])]
            speed = f"{cell['tokens_per_second']:,.0f}"
            memory = [f"{cell['peak_mib']:,.0f}", f"{cell['peak_mib'] / cells[0]['peak_mib']:.2f}"]
            ratio = f"{per_row[0] / per_row[1]:.2f}"
            rows.append([f"{cell['variant']}; {told}", speed, ratio, *memory])
    return markdown([["trainer", "tokens/s", "time per row", "peak MiB", "memory"], *rows], left=1)


def seq2seq_padding() -> str:
    """How much of a batch is padding, and what attention looks at."""
    cells = read_json("seq2seq_padding.json")
    rows = [[x["batch"], f"{100 * x['padding']:.0f} %", f"{x['attended_per_row'] / 1000:.0f}"] for x in cells]
    return markdown([["batch", "padding", "thousand pairs of tokens per row"], *rows], left=1)


def reward_throughput() -> str:
    """Reading rewards against a forward pass with full logits."""
    rows = []
    for length, told in ((256, "8 GSM8K problems"), (1024, "4 x 1024 tokens")):
        cells = read_json(f"reward_throughput_{length}.json")
        for batch, what in (("solutions", told), ("everything", "the same, prompts scored too")):
            ours, full = (cell for cell in cells if cell["batch"] == batch)
            speed = f"{full['seconds'] / ours['seconds']:.2f}x"
            memory = f"{ours['mib']:.0f} MiB, {ours['mib'] / full['mib']:.2f}x"
            rows.append([what, f"{ours['scored']} of {ours['tokens']}", speed, memory])
    header = ["batch", "scored tokens", "tokens/s, against full logits", "memory, against full logits"]
    return markdown([header, *rows], left=1)


def memory_per_rank() -> str:
    """Peak memory of a rank by launcher: the larger of the two."""
    told = {"zero3": "`zero3` x2, as shipped"}
    told["zero3-scaled"] = "`zero3` x2, DeepSpeed's two limits scaled down with the model"
    cells = read_json("memory_per_rank.json")
    rows = [[told.get(x["launcher"], f"`{x['launcher']}` x2"), f"{max(x['peak_mib']):.0f}"] for x in cells]
    return markdown([["launcher", "peak MiB per rank"], *rows], left=1)


def scale() -> str:
    """`trl-irl plan` from 1.5 B to 72 B weights: GiB per GPU by launcher and number of GPUs."""
    cells = {(x["model"], x["method"], x["launcher"], x["gpus"]): x for x in read_json("scale.json")}
    places = [("single_gpu", 1), ("zero2", 8), ("zero3", 8), ("fsdp2", 8), ("zero3", 64), ("fsdp2", 64)]
    header = [f"{launcher} x{gpus}" if gpus > 1 else "one GPU" for launcher, gpus in places]
    rows = [["Qwen2.5", "method", *header, "seconds"]]
    for model, method in dict.fromkeys((model, method) for model, method, *_ in cells):
        found = [cells.get((model, method, *place)) for place in places]
        taken = ["" if x is None else f"{x['gib']['total']:.0f}" for x in found]
        rows.append([model, method, *taken, f"{found[0]['seconds']:.1f}"])
    return markdown(rows, left=2)
