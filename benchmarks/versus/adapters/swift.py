"""ms-swift 4.6.0. Runs in its own environment.

Equal to ours by configuration: a template of our layout (its own puts a newline where ours puts a blank), full connector beside LoRA
(`modules_to_save`). Packing is refused twice, for every attention but flash_attn and for the LLaVA template; `packing: forced` takes both
refusals away, which its authors do not promise to work: the audit says what comes of it.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.versus.adapters.job import (
    CONNECTOR,
    TARGET_PATTERN,
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


def arguments(job: Job) -> list[str]:
    """As on the command line of `swift sft`."""
    data = job.folder / "data.jsonl"
    with data.open("w") as stream:
        for row in read_documents(job):
            said = [
                {"role": "user", "content": "<image>" + row["question"]},
                {"role": "assistant", "content": " " + row["answer"]},
            ]
            stream.write(json.dumps({"messages": said, "images": [row["image"]]}) + "\n")
    values: dict[str, Any] = {
        "model": job.llava, "model_type": "llava1_5_hf", "template": NAME, "dataset": data, "split_dataset_ratio": 0,
        "output_dir": job.folder / "swift", "tuner_type": "lora", "target_regex": TARGET_PATTERN, "modules_to_save": CONNECTOR,
        "lora_rank": job.rank, "lora_alpha": job.alpha, "lora_dropout": 0, "torch_dtype": "float32", "attn_impl": "sdpa",
        "num_train_epochs": job.epochs, "per_device_train_batch_size": 1 if job.packing != "none" else job.passes or job.batch,
        "gradient_accumulation_steps": job.batch // job.passes if job.passes else 1,
        "learning_rate": job.rate, "weight_decay": 0, "warmup_ratio": 0, "max_grad_norm": 1,
        "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no", "report_to": "none", "dataset_num_proc": 1,
        "dataloader_num_workers": 0, "max_length": 8192, "use_cpu": "true", "load_from_cache_file": "false", "dataset_shuffle": "false",
    }  # fmt: skip
    if job.tuned:
        values |= {"gradient_checkpointing": "false", "vit_gradient_checkpointing": "false"}
    if job.packing != "none":
        values |= {"packing": "true", "packing_length": job.row_tokens}
    if job.mode == "audit":
        values["use_logits_to_keep"] = "false"  # else labels reach the trainer without the positions that do not count
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def prepare(job: Job) -> Any:
    """The framework's own pipeline object, with the template registered."""
    from swift.arguments import SftArguments
    from swift.pipelines.train.sft import SwiftSft
    from swift.template import TemplateMeta, register_template
    from swift.template.templates.llava import LlavaHfTemplate

    class Ours(LlavaHfTemplate):
        support_padding_free = True if job.packing == "forced" else None

    register_template(
        TemplateMeta(
            NAME, prefix=["<s>"], prompt=["USER: {{QUERY}} ASSISTANT:"], chat_sep=["</s>"], suffix=["</s>"], template_cls=Ours
        )
    )
    if job.packing == "forced":

        def allow(self: Any) -> None:
            self.padding_free = self.padding_free or self.packing

        SftArguments._check_padding_free = allow
    return SwiftSft(arguments(job))


def main() -> None:
    """Do the job."""
    job = read_job()
    run = prepare(job)
    if job.mode == "dump":
        encoded, _ = run._prepare_dataset()
        rows = [encoded[index] for index in range(len(encoded))]
        dump(job, (row["id"] for row in read_documents(job)), ((row["input_ids"], row["labels"]) for row in rows))
        return
    if job.mode == "audit":
        audit_first_batch(job)
    stamps = stamp_steps(job, trainable_weights)
    run_training(job, stamps, run.run)
    write_result(job, trainable=trainable_weights(run.model), stamps=stamps.taken)


if __name__ == "__main__":
    main()
