"""LLaMA-Factory 0.9.5. Runs in its own environment.

Equal to ours by configuration: a template of our layout without its system text; the full connector beside LoRA (`additional_target`).
Its import of torchaudio, which only audio needs and whose wheel does not load beside a CPU build of torch, is given an empty module.
`packing: neat` is its isolated packing.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from typing import Any

from benchmarks.versus.adapters.job import (
    CONNECTOR,
    TARGETS,
    Job,
    audit_first_batch,
    dump,
    read_documents,
    read_job,
    run_training,
    stamp_steps,
    trainable_weights,
    write_result,
)

NAME = "biovlm_bench"


def arguments(job: Job) -> dict[str, Any]:
    """As in its YAML file."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": "<image>\n" + row["question"]},
                {"role": "assistant", "content": " " + row["answer"]},
            ],
            "images": [row["image"]],
        }
        for row in read_documents(job)
    ]
    (job.folder / "data.json").write_text(json.dumps(rows))
    columns = {"messages": "messages", "images": "images"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    about = {"bench": {"file_name": "data.json", "formatting": "sharegpt", "columns": columns, "tags": tags}}
    (job.folder / "dataset_info.json").write_text(json.dumps(about))
    values: dict[str, Any] = {
        "stage": "sft", "do_train": True, "model_name_or_path": job.llava, "template": NAME, "dataset": "bench",
        "dataset_dir": str(job.folder), "cutoff_len": job.row_tokens if job.packing != "none" else 8192,
        "finetuning_type": "lora", "lora_target": ",".join(TARGETS), "lora_rank": job.rank, "lora_alpha": job.alpha,
        "lora_dropout": 0.0, "additional_target": CONNECTOR, "freeze_vision_tower": True, "output_dir": str(job.folder / "lf"),
        "num_train_epochs": job.epochs, "per_device_train_batch_size": 1 if job.packing != "none" else job.batch,
        "gradient_accumulation_steps": 1, "learning_rate": job.rate, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "dataloader_num_workers": 0,
        "overwrite_cache": True, "flash_attn": "sdpa", "bf16": False, "fp16": False, "optim": "adamw_torch_fused",
    }  # fmt: skip
    if job.tuned:
        values["disable_gradient_checkpointing"] = True
    if job.packing != "none":
        values |= {"packing": True, "neat_packing": True}
    return values


def register() -> None:
    """Our layout as one of its templates."""
    from llamafactory.data.formatter import EmptyFormatter, StringFormatter
    from llamafactory.data.mm_plugin import get_mm_plugin
    from llamafactory.data.template import register_template

    register_template(
        name=NAME,
        format_user=StringFormatter(slots=["USER: {{content}} ASSISTANT:"]),
        format_prefix=EmptyFormatter(slots=[{"bos_token"}]),
        mm_plugin=get_mm_plugin(name="llava", image_token="<image>"),
    )


def main() -> None:
    """Do the job."""
    job = read_job()
    import transformers  # first: it must not believe that torchaudio is there

    transformers.utils.logging.set_verbosity_error()
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    register()
    from llamafactory.train.sft import workflow
    from llamafactory.train.tuner import run_exp

    del sys.modules["torchaudio"]

    models: list[Any] = []
    made = workflow.CustomSeq2SeqTrainer

    def trainer(*given: Any, **named: Any) -> Any:
        models.append(named["model"])
        if job.mode == "dump":
            rows = named["train_dataset"]
            dump(job, (d["id"] for d in read_documents(job)), ((row["input_ids"], row["labels"]) for row in rows))
            raise SystemExit(0)
        return made(*given, **named)

    workflow.CustomSeq2SeqTrainer = trainer
    if job.mode == "audit":
        audit_first_batch(job)
    stamps = stamp_steps(job, trainable_weights)
    run_training(job, stamps, lambda: run_exp(arguments(job)))
    write_result(job, trainable=trainable_weights(models[0]), stamps=stamps.taken)


if __name__ == "__main__":
    main()
