"""Ways to sample a completion from a policy: a temperature, and what is cut off its distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


_NAMES = {"t": "temperature", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
_NAMES["beams"] = "beams"


@dataclass(frozen=True, order=True)
class Sampler:
    """
    How to sample.

    Args:
        temperature (`float`, *optional*, defaults to `1.0`):
            0 is greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus: only the likeliest tokens whose probabilities add up to this (arXiv 1904.09751).
        top_k (`int`, *optional*, defaults to `0`):
            Only so many of the likeliest tokens; 0 is off.
        min_p (`float`, *optional*, defaults to `0.0`):
            Only tokens of at least this share of the likeliest one's probability (arXiv 2407.01082).
        beams (`int`, *optional*, defaults to `1`):
            With 2 or more, beam search of this width at temperature 0, whose best beam is the completion.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    beams: int = 1

    @classmethod
    def parse(cls, text: str) -> Sampler:
        """
        What `t=1,top_p=0.9`, `beams=4` or a temperature alone, such as `0.7`, says.

        Raises:
            `ValueError`: it is none, or a number is out of range or has no effect.
        """
        given: dict[str, float] = {}
        for part in text.split(","):
            name, has_name, value = part.strip().rpartition("=")
            key = _NAMES.get(name.strip()) if has_name else "temperature"
            try:
                number = float(value)
            except ValueError:
                key = None
            if key is None or key in given:
                raise ValueError(
                    f"the sampler {text!r} cannot be read at {part.strip()!r}. Samplers are written as t=0.7, "
                    "t=1,top_p=0.9, t=1,min_p=0.05, t=1,top_k=40 or beams=4."
                )
            given[key] = number
        if "beams" in given:
            given.setdefault("temperature", 0.0)
        for key in ("top_k", "beams"):
            if not float(given.get(key, 0)).is_integer():
                raise ValueError(f"the sampler {text!r} is out of range: `{key}` must be a whole number.")
        sampler = cls(**{key: int(x) if key in ("top_k", "beams") else x for key, x in given.items()})
        sampler.check(text)
        return sampler

    def check(self, text: str) -> None:
        """
        Raises:
            `ValueError`: a number is out of range, or has no effect.
        """
        for name, is_right, what in (
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more, and finite"),
            ("top_p", 0 < self.top_p <= 1, "a probability above 0, up to 1 (off)"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("min_p", 0 <= self.min_p < 1, "a share from 0 (off) to below 1"),
            ("beams", self.beams >= 1, "1 (off) or more"),
        ):
            if not is_right:
                raise ValueError(f"the sampler {text!r} is out of range: `{name}` must be {what}.")
        if self.beams > 1 and self.temperature > 0:
            raise ValueError(f"the sampler {text!r} searches beams at a temperature above 0. Leave one of them out.")
        if self.temperature == 0 and (self.top_p, self.top_k, self.min_p) != (1.0, 0, 0.0):
            raise ValueError(f"the sampler {text!r} cuts the tail off greedy decoding, which never goes there.")

    @property
    def is_random(self) -> bool:
        """Whether it says another completion each time."""
        return self.temperature > 0

    @property
    def is_plain(self) -> bool:
        """Whether it is a temperature alone."""
        return self == Sampler(self.temperature)

    def __str__(self) -> str:
        if self.beams > 1:
            return f"beams={self.beams}"
        return ",".join([f"t={self.temperature:g}", *(f"{name}={value:g}" for name, value in self._cuts())])

    @property
    def label(self) -> str:
        """For tables and pictures: `T = 1, top-p 0.9`."""
        if self.beams > 1:
            return f"{self.beams} beams"
        cuts = (f"{name.replace('_', '-')} {value:g}" for name, value in self._cuts())
        return ", ".join([f"T = {self.temperature:g}" if self.temperature else "greedy", *cuts])

    @property
    def family(self) -> str:
        """What it shares with the same cut at other temperatures: `temperature`, or `top-p 0.9`."""
        if self.beams > 1:
            return "beams"
        return ", ".join(f"{name.replace('_', '-')} {value:g}" for name, value in self._cuts()) or "temperature"

    def _cuts(self) -> list[tuple[str, float]]:
        return [(name, value) for name, value in self.options().items() if name not in ("temperature", "beams")]

    def options(self) -> dict[str, float]:
        """Its temperature, and of the rest what is not off: keywords of [`~text.sampling.sample`]."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            field.name: values[field.name]
            for field in fields(self)
            if field.name == "temperature" or values[field.name] != field.default
        }


GREEDY = Sampler(0.0)
