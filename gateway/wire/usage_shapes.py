"""Any documented usage object, in whatever spelling, read into the one normal form.

The providers' spellings, what each means and where it is documented: README.md in this folder. What
a provider says beside or above its totals is never dropped: it is billed, or the usage is marked.
Knows no price, no stream and no endpoint.
"""

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from itertools import chain, combinations
from typing import Any

from gateway.wire.usage import Usage, count_of, part_of

# Names without case and underscores, and what they count. An empty role: nothing that is billed.
_TOTALS = {
    "prompttokens": "prompt",
    "inputtokens": "prompt",
    "prompttokencount": "prompt",
    "inputtokencount": "prompt",
    "promptevalcount": "prompt",
    "promptn": "fresh",
    "completiontokens": "completion",
    "outputtokens": "completion",
    "completiontokencount": "completion",
    "outputtokencount": "completion",
    "candidatestokencount": "completion",
    "responsetokencount": "completion",
    "evalcount": "completion",
    "predictedn": "completion",
    "totaltokens": "total",
    "totaltokencount": "total",
    "cachedtokens": "cached",
    "numcachedtokens": "cached",
    "cachedinputtokens": "cached",
    "cachedprompttokens": "cached",
    "cachedprompttexttokens": "cached",
    "promptcachehittokens": "cached",
    "cachereadtokens": "cached",
    "cachereadinputtokens": "cached",
    "cachereadinputtokencount": "cached",
    "cachedcontenttokencount": "cached",
    "cachen": "cached",
    "promptcachemisstokens": "miss",
    "cachewritetokens": "written",
    "cachecreationtokens": "written",
    "cachecreationinputtokens": "written",
    "cachewriteinputtokens": "written",
    "cachewriteinputtokencount": "written",
    "claudecachecreation5mtokens": "written_5m",
    "claudecachecreation1htokens": "written_1h",
    "reasoningtokens": "reasoning",
    "thinkingtokens": "reasoning",
    "thoughttokens": "reasoning",
    "thoughtstokens": "reasoning",
    "thoughtstokencount": "reasoning",
    "tooluseprompttokencount": "tool_prompt",
    "tooluseprompttokens": "tool_prompt",
    "citationtokens": "citation",
    "numsearchqueries": "searches",
    "websearchrequests": "searches",
    "numserversidetoolsused": "tools",
}
_PROMPT_PARTS = {
    "texttokens": "",
    "documenttokens": "",
    "cachedtokens": "cached",
    "cachedtexttokens": "",
    "cachewritetokens": "written",
    "cachecreationtokens": "written",
    "cachecreationinputtokens": "written",
    "audiotokens": "prompt_audio",
    "imagetokens": "prompt_image",
    "videotokens": "prompt_video",
}
_COMPLETION_PARTS = {
    "texttokens": "",
    "documenttokens": "",
    "acceptedpredictiontokens": "",
    "rejectedpredictiontokens": "rejected",
    "reasoningtokens": "reasoning",
    "thinkingtokens": "reasoning",
    "thoughttokens": "reasoning",
    "audiotokens": "completion_audio",
    "imagetokens": "completion_image",
    "videotokens": "completion_video",
    "citationtokens": "citation",
}
_CACHED_PARTS = {
    "texttokens": "",
    "documenttokens": "",
    "audiotokens": "cached_audio",
    "imagetokens": "cached_image",
    "videotokens": "",
}
_WRITTEN_PARTS = {"ephemeral5minputtokens": "written_5m", "ephemeral1hinputtokens": "written_1h"}
_TOOL_PROMPT_PARTS = dict.fromkeys(("texttokens", "documenttokens", "imagetokens"), "")
_TOOL_USES = {
    "websearchrequests": "searches",
    "websearchcalls": "searches",
    "websearch": "searches",
    "webfetchrequests": "",
}
_SECTIONS = {
    "prompttokensdetails": _PROMPT_PARTS,
    "prompttokendetails": _PROMPT_PARTS,
    "inputtokensdetails": _PROMPT_PARTS,
    "inputtokendetails": _PROMPT_PARTS,
    "completiontokensdetails": _COMPLETION_PARTS,
    "completiontokendetails": _COMPLETION_PARTS,
    "outputtokensdetails": _COMPLETION_PARTS,
    "outputtokendetails": _COMPLETION_PARTS,
    "candidatestokensdetails": _COMPLETION_PARTS,
    "responsetokensdetails": _COMPLETION_PARTS,
    "cachedtokensdetails": _CACHED_PARTS,
    "cachetokensdetails": _CACHED_PARTS,
    "tooluseprompttokensdetails": _TOOL_PROMPT_PARTS,
    "cachecreation": _WRITTEN_PARTS,
    "cachecreationtokendetails": _WRITTEN_PARTS,
    "servertooluse": _TOOL_USES,
    "serversidetoolusagedetails": _TOOL_USES,
    "connectors": _TOOL_USES,
    "billedunits": _TOTALS,
}
# Who spells them so, and tells no total, counts the cache beside the input.
_ANTHROPICS = frozenset(
    {"cache_read_input_tokens", "cache_creation_input_tokens", "cacheReadInputTokens",
     "cacheWriteInputTokens"}
)  # fmt: skip
_DEPTH_MAX = 3  # of sections within sections
# A count of these names that no table has is billed somehow; times and rates are not.
_BILLED = re.compile("token|search|quer|source|citation|unit|pixel|page|char|credit|image|second")
_MEASURED = re.compile("persec|time|latency|duration|rate|cost|limit|max")
_ELSEWHERE = frozenset({"tollhouse", "iterations", "tokens"})  # read by others, or said twice
_STANDARD_TIERS = frozenset(
    {"", "auto", "default", "standard", "standard_only", "on_demand", "traffic_type_unspecified"}
)
_TIER_LENGTH_MAX = 64
_PLACES_OTHERWISE = frozenset({"", "global", "not_available"})  # of inference, at no other price
_PICO = 10**12
_TOLD_PICO_MAX = 2**62
_PICO_PER_TICK = 100  # xAI's unit, of which a dollar has 10**10
# Parts that some providers count beside a total and some within it, and which total that is.
_BESIDE = {
    "reasoning": "completion",
    "tool_prompt": "prompt",
    "cached": "prompt",
    "written": "prompt",
    "citation": "completion",
    "completion_image": "completion",
    "completion_audio": "completion",
    "completion_video": "completion",
    "rejected": "completion",
}


def read_usage(document: Mapping[str, Any], *, cache_beside: bool = False) -> Usage | None:
    """Read a usage object; None where it tells no count.

    cache_beside: the dialect counts what it read from, or wrote to, a cache beside its input.
    """
    reading = _Reading()
    reading.study(document, _TOTALS)
    reading.study_cost(document)
    if "total" not in reading.counts and not _ANTHROPICS.isdisjoint(document):
        cache_beside = cache_beside or "prompt_tokens" not in document
    return reading.usage(cache_beside, part_of(document.get("tollhouse"), "compute_us"))


def tier_of(value: Any) -> str:
    """The service tier that a provider names; empty where list prices are for that one."""
    if not isinstance(value, str):
        return ""
    tier = value.strip().lower()[:_TIER_LENGTH_MAX]
    return "" if tier in _STANDARD_TIERS else tier.removeprefix("on_demand_")


class _Reading:
    """What one usage object has told so far."""

    __slots__ = ("counts", "other_fees", "tier", "told_pico", "unclear")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}  # by role
        self.other_fees = False
        self.unclear = False
        self.tier = ""
        self.told_pico = 0

    def study(self, section: Mapping[Any, Any], table: Mapping[str, str], depth: int = 0) -> None:
        """Take in every field of one object; ``table`` has the roles of its names."""
        for name, value in section.items():
            if value is None:
                continue
            name = name.replace("_", "").lower()
            role = table.get(name)
            if role is not None:
                if role:
                    self._tell(role, value)
            elif name in _SECTIONS:
                if depth < _DEPTH_MAX:
                    self._study_section(value, _SECTIONS[name], depth + 1)
            elif name in ("servicetier", "traffictype"):
                self.tier = tier_of(value) or self.tier
            elif name == "speed":
                self.other_fees |= value != "standard"
            elif name == "inferencegeo":
                self.other_fees |= value not in _PLACES_OTHERWISE
            elif name not in _ELSEWHERE:
                self._study_unknown(name, value, table)

    def study_cost(self, document: Mapping[str, Any]) -> None:
        """Read what the provider says that the answer cost, in dollars."""
        cost = document.get("cost")
        if isinstance(cost, dict):
            self.told_pico = _pico_of(cost.get("total_cost")) or sum(
                _pico_of(part) for name, part in cost.items() if name.endswith("_cost")
            )
        elif cost is not None:
            self.told_pico = _pico_of(cost)
            if document.get("is_byok") is True and isinstance(document.get("cost_details"), dict):
                # With one's own key the provider is paid apart from the broker.
                self.told_pico += _pico_of(document["cost_details"].get("upstream_inference_cost"))
        ticks = count_of(document.get("cost_in_usd_ticks"))
        if ticks:
            self.told_pico = max(self.told_pico, ticks * _PICO_PER_TICK)
        self.told_pico = min(self.told_pico, _TOLD_PICO_MAX)

    def usage(self, cache_beside: bool, compute_us: int) -> Usage | None:
        """Settle which part stands within which total."""
        counts = self.counts
        if not counts.keys() & {"prompt", "fresh", "miss", "completion"} and not counts.get(
            "total"
        ):
            return None
        if "tools" in counts and not self.other_fees:
            self.other_fees = counts["tools"] > counts.get("searches", 0)
        self._settle_written()
        prompt, completion = self._totals(cache_beside)
        cached = self._cut("cached", prompt)
        written = self._cut("written", prompt - cached)
        if counts.get("miss") and counts["miss"] + cached + written != prompt:
            self.unclear = self.unclear or counts["miss"] + cached != prompt
        cached_audio = self._cut("cached_audio", cached)
        reasoning = self._cut("reasoning", completion)
        spoken = self._cut("completion_audio", completion - reasoning)
        drawn = self._cut("completion_image", completion - reasoning - spoken)
        filmed = self._cut("completion_video", completion - reasoning - spoken - drawn)
        return Usage(
            prompt_tokens=prompt,
            cached_tokens=cached,
            cache_write_tokens=written,
            cache_write_1h_tokens=self._cut("written_1h", written),
            prompt_audio_tokens=self._cut("prompt_audio", prompt),
            prompt_image_tokens=self._cut("prompt_image", prompt),
            prompt_video_tokens=self._cut("prompt_video", prompt),
            cached_audio_tokens=cached_audio,
            cached_image_tokens=self._cut("cached_image", cached - cached_audio),
            completion_tokens=completion,
            reasoning_tokens=reasoning,
            completion_audio_tokens=spoken,
            completion_image_tokens=drawn,
            completion_video_tokens=filmed,
            citation_tokens=self._cut("citation", completion - reasoning - spoken - drawn - filmed),
            compute_us=compute_us,
            web_searches=counts.get("searches", 0),
            told_pico=self.told_pico,
            other_fees=self.other_fees,
            service_tier=self.tier,
            source="unclear" if self.unclear else "provider",
        )

    def _tell(self, role: str, value: Any) -> None:
        """Note a count. Zero is no news; of two numbers for the same thing the larger holds."""
        count = count_of(value)
        known = self.counts.get(role)
        if count is None:
            self.unclear = True
        elif known is None:
            self.counts[role] = count
        elif count and count != known:
            self.unclear = self.unclear or known > 0
            self.counts[role] = max(known, count)

    def _study_section(self, value: Any, table: Mapping[str, str], depth: int) -> None:
        if isinstance(value, list):
            value = _by_modality(value)
        if isinstance(value, dict):
            self.study(value, table, depth)

    def _study_unknown(self, name: str, value: Any, table: Mapping[str, str]) -> None:
        """A count without a meaning here: what it costs is not known, so no price may cover it."""
        if isinstance(value, dict):
            value = max((count_of(part) or 0 for part in value.values()), default=0)
        if table is _TOOL_USES or (_BILLED.search(name) and not _MEASURED.search(name)):
            self.other_fees = self.other_fees or bool(count_of(value))

    def _settle_written(self) -> None:
        counts = self.counts
        parts = counts.get("written_5m", 0) + counts.get("written_1h", 0)
        if parts > counts.get("written", 0):
            self.unclear = self.unclear or counts.get("written", 0) > 0
            counts["written"] = parts

    def _totals(self, cache_beside: bool) -> tuple[int, int]:
        """(prompt, completion) with all that belongs to them; the provider's total arbitrates."""
        counts = self.counts
        prompt, completion = counts.get("prompt"), counts.get("completion")
        total = counts.get("total", 0)
        if prompt is None and "fresh" in counts:
            prompt = counts["fresh"] + counts.get("cached", 0)
        if prompt is None and "miss" in counts:
            prompt = counts["miss"] + counts.get("cached", 0)
        if prompt is None:
            prompt = max(0, total - (completion or 0))
        if completion is None:
            completion = max(0, total - prompt)
        told = {"prompt": prompt, "completion": completion}
        parts = {role: counts[role] for role in _BESIDE if counts.get(role)}
        forced = {role for role, size in parts.items() if size > told[_BESIDE[role]]}
        documented = self._usually_beside(cache_beside)
        usual = forced | (parts.keys() & documented)
        excess = total - prompt - completion if total else None
        if excess == 0 and ("citation" in parts or cache_beside):
            excess = None  # such a total counts the input and the output alone
        chosen = None if excess is None else _summing_to(excess, parts, usual, forced)
        if chosen is None:
            chosen = usual
            self.unclear = self.unclear or excess is not None or bool(forced - documented)
        for role in chosen:
            told[_BESIDE[role]] += parts[role]
        # What nothing explains was paid for as well; output is the dearer side.
        told["completion"] += max(0, total - told["prompt"] - told["completion"])
        return told["prompt"], told["completion"]

    def _usually_beside(self, cache_beside: bool) -> set[str]:
        """Where no total arbitrates: the roles whose documentation puts them beside."""
        usual = {"tool_prompt", "citation"}
        if cache_beside:
            usual |= {"cached", "written"}
        if "citation" in self.counts:
            usual.add("reasoning")
        return usual

    def _cut(self, role: str, limit: int) -> int:
        """A part, never above its total: a provider that miscounts cannot break the books."""
        count = self.counts.get(role, 0)
        if count <= limit:
            return count
        self.unclear = True
        return limit


def _summing_to(
    excess: int, parts: Mapping[str, int], usual: set[str], forced: set[str]
) -> set[str] | None:
    """The parts that explain by how much the total exceeds prompt and completion; None: none do."""
    free = [role for role in parts if role not in forced]
    larger = (
        set(some) | forced for size in range(len(free) + 1) for some in combinations(free, size)
    )
    for choice in chain((forced, usual), larger):
        if sum(parts[role] for role in choice) == excess:
            return choice
    return None


def _by_modality(entries: list[Any]) -> dict[str, Any]:
    """Google's lists of counts by modality, as an object."""
    return {
        f"{entry['modality']}tokens": entry.get("tokenCount", entry.get("token_count"))
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("modality"), str)
    }


def _pico_of(dollars: Any) -> int:
    """An amount in dollars as pico-dollars; 0 where it is no amount."""
    if isinstance(dollars, bool) or not isinstance(dollars, int | float | str):
        return 0
    try:
        amount = Decimal(str(dollars)[:_TIER_LENGTH_MAX])
        if not 0 < amount < _TOLD_PICO_MAX // _PICO:
            return 0
        return int((amount * _PICO).to_integral_value())
    except InvalidOperation:
        return 0
