"""TRL 1.16.0, SFTTrainer. Runs in its own environment.

Tuned: prompt and completion apart (loss on the answer alone), no checkpointing, no length limit. Default: one `messages` dialogue with
checkpointing, whose loss also lies on the image placeholders; its labels therefore differ from ours. Packing is refused for images.
"""

from __future__ import annotations

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


def dataset(job: Job) -> Any:
    """The documents as TRL takes them."""
    from datasets import Dataset, Image

    rows = []
    for document in read_documents(job):
        asked = {"role": "user", "content": document["question"]}
        said = {"role": "assistant", "content": document["answer"]}
        said_apart = {"prompt": [asked], "completion": [said]}
        rows.append({"image": document["image"], **(said_apart if job.tuned else {"messages": [asked, said]})})
    return Dataset.from_list(rows).cast_column("image", Image())


def make_trainer(job: Job) -> Any:
    """A trainer on the model in float32."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForImageTextToText.from_pretrained(job.llava, dtype=torch.float32, attn_implementation="sdpa")
    settings: dict[str, Any] = {"gradient_checkpointing": False} if job.tuned else {}
    config = SFTConfig(
        output_dir=str(job.folder / "trl"), num_train_epochs=job.epochs, per_device_train_batch_size=job.batch,
        learning_rate=job.rate, weight_decay=0.0, max_grad_norm=1.0, logging_steps=1, save_strategy="no", report_to="none",
        use_cpu=True, bf16=False, max_length=None, dataloader_num_workers=0, optim="adamw_torch_fused", **settings,
    )  # fmt: skip
    lora = LoraConfig(
        r=job.rank, lora_alpha=job.alpha, lora_dropout=0.0, target_modules=TARGET_PATTERN, modules_to_save=[CONNECTOR]
    )
    processor = AutoProcessor.from_pretrained(job.llava)
    return SFTTrainer(model=model, args=config, train_dataset=dataset(job), processing_class=processor, peft_config=lora)


def main() -> None:
    """Do the job."""
    job = read_job()
    trainer = make_trainer(job)
    if job.mode == "dump":
        batches = [trainer.data_collator([row]) for row in trainer.train_dataset]
        dump(job, (d["id"] for d in read_documents(job)), ((b["input_ids"][0], b["labels"][0]) for b in batches))
        return
    if job.mode == "audit":
        audit_first_batch(job)
    stamps = stamp_steps(job, trainable_weights)
    run_training(job, stamps, trainer.train)
    write_result(job, trainable=trainable_weights(trainer.model), stamps=stamps.taken)


if __name__ == "__main__":
    main()
