"""From names to a resident pair: check, plan memory, load, and choose the model path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from specbatch.schemas.messages import MemoryReport
from specbatch.specdec.forward.feed import Decoder
from specbatch.specdec.forward.generic import GenericDecoder
from specbatch.specdec.forward.generic_paged import PagedGenericDecoder
from specbatch.specdec.forward.lean import LeanDecoder
from specbatch.specdec.forward.lean_paged import PagedLeanDecoder
from specbatch.specdec.forward.paged_memory import Pages
from specbatch.specdec.forward.paging import PAGE_SIZE
from specbatch.specdec.forward.runner import ModelRunner, load_model
from specbatch.specdec.kernels import interface
from specbatch.specdec.kernels.compiler import check_compiler
from specbatch.specdec.kernels.packing import can_pack, pack_linears
from specbatch.specdec.models import families, folders
from specbatch.specdec.models.arithmetic import check_arithmetic, is_usual
from specbatch.specdec.models.division import check_division
from specbatch.specdec.models.host import host_available_bytes, resident_bytes
from specbatch.specdec.models.memory import MemoryPlan, plan_memory
from specbatch.specdec.models.quantization import check_device, check_dtype, check_ranks
from specbatch.specdec.policy.controller import Policy, make_policy
from specbatch.specdec.ranks.group import Leader
from specbatch.specdec.ranks.parallel import load_parallel
from specbatch.specdec.rows.batch import POSITIONS_STEP
from specbatch.specdec.tokenizer import Tokenizer

if TYPE_CHECKING:
    from specbatch.schemas.spec import KvCacheDtype

_KV_DTYPES = {"fp8": torch.float8_e4m3fn}


@dataclass(frozen=True, slots=True)
class Pair:
    """A loaded pair and what was decided about it."""

    target: Decoder
    draft: Decoder | None
    tokenizer: Tokenizer
    eos_ids: tuple[int, ...]
    policy: Policy
    max_batch_size: int
    grown_batch_size: int
    max_sequence_tokens: int
    max_kv_tokens: int


def load_pair(
    target: str,
    draft: str | None,
    *,
    max_batch_size: int | Literal["auto"],
    speculation: int | Literal["auto", "off"],
    device: str,
    dtype: str,
    memory_fraction: float,
    model_path: Literal["auto", "generic"],
    num_threads: int | None,
    max_sequence_tokens: int | None,
    quantization: str | None = None,
    leader: Leader | None = None,
    coupling: str = "seed",
    kv_cache_dtype: KvCacheDtype = "auto",
    bitwise: bool = False,
) -> Pair:
    """Load target and draft; the arguments are those of ``Engine.from_pretrained``.

    With a ``leader`` the target is divided among its ranks; the draft is whole, on this one's device.

    Raises:
        SpecbatchError: the codes of the model checks, of ``check_compiler``, ``check_division`` and ``check_ranks``;
            JOB_MEMORY, JOB_MODEL_LOAD; JOB_CONFIG of ``make_policy``.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
    check_compiler(where.type)
    target_folder = folders.locate_model(target, quantization)
    draft_folder = folders.locate_model(draft) if draft is not None and speculation not in ("off", 0) else None
    if draft_folder is not None:
        folders.check_pair(target_folder, draft_folder)
    num_ranks = 1 if leader is None else leader.num_ranks
    check_division(target_folder.name, target_folder.config, num_ranks)
    check_ranks(target_folder.name, target_folder.quantization, num_ranks)
    dtype_name = folders.resolve_dtype(dtype, where.type, target_folder)
    for folder in (target_folder, draft_folder):
        if folder is not None:
            check_device(folder.name, folder.quantization, where.type)
            check_dtype(folder.name, folder.config, folder.quantization, dtype_name)
    is_lean = model_path == "auto" and leader is None and _path(target_folder) == "lean"
    path = "lean" if is_lean else "generic"
    check_arithmetic(target_folder.name, path, kv_cache_dtype, bitwise=bitwise, coupling=coupling, num_ranks=num_ranks)
    plan = plan_memory(
        target_folder,
        draft_folder,
        dtype=dtype_name,
        device=where.type,
        available_bytes=free_bytes(where) if leader is None else min(free_bytes(where), leader.free_bytes),
        memory_fraction=memory_fraction,
        batch_size=max_batch_size,
        speculation=speculation,
        num_ranks=num_ranks,
        kv_cache_dtype=kv_cache_dtype,
    )
    if not plan.uses_draft:
        draft_folder = None
    policy = make_policy(speculation, has_draft=draft_folder is not None, has_suffix=True)
    tokenizer = Tokenizer.from_folder(target_folder.path)
    context = folders.context_length(target_folder)
    # The target's context alone decides lengths: a draft with a shorter one stops proposing there, no more.
    longest = min(context, max_sequence_tokens or context)
    may_page = is_lean or (leader is None and interface.takes_pages(target_folder.config))
    has_pages = may_page and (uses_pages(where) or not is_usual(kv_cache_dtype, bitwise=bitwise))
    pages = make_pages(plan.kv_token_budget, plan.batch_size, longest, where) if has_pages else None

    def decoder(folder: folders.ModelFolder, ranks: Leader | None = None, *, is_invariant: bool = False) -> Decoder:
        return load_decoder(
            folder,
            getattr(torch, dtype_name),
            where,
            plan.batch_size,
            tokenizer.vocab_size,
            model_path=model_path,
            pages=pages,
            leader=ranks,
            kv_dtype=_KV_DTYPES.get(kv_cache_dtype),
            is_invariant=is_invariant,
        )

    return Pair(
        target=decoder(target_folder, leader, is_invariant=bitwise),
        draft=decoder(draft_folder) if draft_folder is not None else None,
        tokenizer=tokenizer,
        eos_ids=folders.eos_token_ids(target_folder.path),
        policy=policy,
        max_batch_size=plan.batch_size,
        grown_batch_size=_grown(plan, max_batch_size),
        max_sequence_tokens=longest,
        max_kv_tokens=plan.kv_token_budget,
    )


def load_decoder(
    folder: folders.ModelFolder,
    dtype: torch.dtype,
    device: torch.device,
    num_slots: int,
    vocab_size: int,
    *,
    model_path: Literal["auto", "generic"] = "auto",
    pages: Pages | None = None,
    leader: Leader | None = None,
    kv_dtype: torch.dtype | None = None,
    is_invariant: bool = False,
) -> Decoder:
    """One model by the lean path where its family has one, else, and where ranks share it, by the generic path.

    Args:
        pages: the page table of the pair, for keys and values in pages; None keeps them in slots.
        kv_dtype, is_invariant: see ``PagedLeanDecoder``.
    """
    sizes = {
        "num_slots": num_slots,
        "max_positions": POSITIONS_STEP,
        "context_length": folders.context_length(folder),
        "vocab_size": vocab_size,
    }
    if leader is not None:
        return load_parallel(leader, folder.path, dtype, device, **sizes)
    model = load_model(folder.path, dtype, device, folder.quantization)
    if model_path == "auto" and _path(folder) == "lean":
        if pages is not None:
            return PagedLeanDecoder(
                model,
                pages=pages,
                context_length=sizes["context_length"],
                vocab_size=sizes["vocab_size"],
                kv_dtype=kv_dtype,
                is_invariant=is_invariant,
            )
        return LeanDecoder(model, **sizes)
    if pages is not None and interface.takes_pages(folder.config):
        return PagedGenericDecoder(
            model, pages=pages, context_length=sizes["context_length"], vocab_size=sizes["vocab_size"]
        )
    if can_pack(device, dtype):
        pack_linears(model)
    return GenericDecoder(ModelRunner(model, **sizes))


def uses_pages(device: torch.device) -> bool:
    """Pages where attention reads them in place, by a kernel; a CPU reads rows best where they lie in one piece."""
    return device.type == "cuda"


def make_pages(num_tokens: int, num_slots: int, max_sequence_tokens: int, device: torch.device) -> Pages:
    """A page table for so many positions in all, but not more than the slots could ever fill."""
    row_pages = -(-max_sequence_tokens // PAGE_SIZE)
    num_pages = min(num_tokens // PAGE_SIZE, num_slots * row_pages)
    return Pages(num_pages + 1, num_slots, max_sequence_tokens, device)


def _path(folder: folders.ModelFolder) -> Literal["lean", "generic"]:
    return families.model_path(folder.config, is_quantized=folder.quantization is not None)


def free_bytes(device: torch.device) -> int:
    """Memory that is free for models and rows, by the device's own figures."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return host_available_bytes()


def memory_report(target: Decoder, draft: Decoder | None) -> MemoryReport:
    """Bytes held by both models and both caches, and by the whole process."""
    return MemoryReport(
        target_bytes=target.weight_bytes,
        draft_bytes=draft.weight_bytes if draft else 0,
        target_kv_bytes=target.cache.num_bytes,
        draft_kv_bytes=draft.cache.num_bytes if draft else 0,
        process_bytes=resident_bytes(),
    )


def _grown(plan: MemoryPlan, max_batch_size: int | Literal["auto"]) -> int:
    """Rows in flight once the draft's memory is free; a number that the user gave is kept."""
    return plan.without_draft.batch_size if max_batch_size == "auto" else plan.batch_size
