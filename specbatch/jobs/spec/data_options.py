"""The options of what a job is made of: the dataset, the results, the models. All options are in ``options``.

Nothing is imported here: ``--help`` must be quick.
"""

from __future__ import annotations

from specbatch.jobs.spec.option_types import Group, Option

_D, _O, _M = Group.DATA, Group.RESULTS, Group.MODELS

DATA_OPTIONS: tuple[Option, ...] = (
    Option("prompt_column", "input.prompt_column", _D, "text", "Column with the prompt. [prompt]", "NAME"),
    Option(
        "messages_column", "input.messages_column", _D, "text", "Column with chats, for the model's template.", "NAME"
    ),
    Option("template", "input.template", _D, "text", "Jinja over the columns, or @FILE with it.", "TEXT|@FILE"),
    Option("system", "input.system", _D, "text", "System prompt before every prompt, or @FILE.", "TEXT|@FILE"),
    Option(
        "row_params",
        "input.row_params",
        _D,
        "flag",
        "Columns max_new_tokens, temperature, top_p, top_k and seed override the settings row by row.",
    ),
    Option(
        "truncate_prompt",
        "input.truncate_prompt",
        _D,
        "choice",
        "Prompts over the context: error rows, or cut at this end, with room for max_new_tokens. [error]",
        choices=("error", "left", "right"),
    ),
    Option("id_column", "input.id_column", _D, "text", "Column with your row id; must exist.", "NAME"),
    Option("limit", "input.limit", _D, "int", "Only the first N rows.", "N"),
    Option(
        "keep_columns",
        "input.keep_columns",
        _D,
        "texts",
        "Pass only this input column through; may repeat. [all]",
        "NAME",
    ),
    Option("rename", "input.rename", _D, "texts", "Give an input column another name; may repeat.", "OLD=NEW"),
    Option(
        "dedupe",
        "input.dedupe",
        _D,
        "choice",
        "mark adds duplicate_of, the first row with the same prompt and settings; no row is skipped. [off]",
        choices=("off", "mark"),
    ),
    Option("allow_empty", "input.allow_empty", _D, "flag", "A dataset without rows is a job that is complete."),
    Option(
        "on_bad_file",
        "input.on_bad_file",
        _D,
        "choice",
        "quarantine leaves files out that cannot be read, and says so. [fail]",
        choices=("fail", "quarantine"),
    ),
    Option("output", "output", _O, "text", "Where results go. Default: beside the dataset.", "DIR"),
    Option("output_prefix", "results.prefix", _O, "text", "Begin of the names of all added columns. []", "TEXT"),
    Option(
        "compression",
        "results.compression",
        _O,
        "choice",
        "Of the parts. [zstd]",
        choices=("zstd", "snappy", "gzip", "lz4", "none"),
    ),
    Option(
        "row_group_rows",
        "results.row_group_rows",
        _O,
        "int",
        "Most rows of a row group of the parts. [the writer's choice]",
        "N",
    ),
    Option(
        "partition",
        "results.partitions",
        _O,
        "texts",
        "Folder KEY=VALUE below the output, as tables by night have them; may repeat.",
        "KEY=VALUE",
    ),
    Option("target", "models.target", _M, "text", "Bundled name, folder or hub id. [code-pair/target]", "MODEL"),
    Option(
        "draft",
        "models.draft",
        _M,
        "text",
        "Draft model. Default: the target's bundled one.",
        "MODEL|none",
        is_free=True,
    ),
    Option(
        "dtype",
        "models.dtype",
        _M,
        "choice",
        "Arithmetic; auto: float32 on CPU, the checkpoint's own on a GPU. [auto]",
        choices=("auto", "float32", "bfloat16", "float16", "float64"),
    ),
    Option(
        "quantization",
        "models.quantization",
        _M,
        "choice",
        "Quantize the target's dense weights on loading (CPU only); it changes the text. [none]",
        choices=("torchao-int8", "torchao-float8", "bitsandbytes-nf4"),
    ),
    Option(
        "kv_cache_dtype",
        "models.kv_cache_dtype",
        _M,
        "choice",
        "What keys and values are kept in; fp8 takes less memory and changes the text. Dense Llama, Mistral, Qwen2, "
        "Qwen3; one device. [auto]",
        choices=("auto", "fp8"),
    ),
    Option(
        "bitwise",
        "models.bitwise",
        _M,
        "flag",
        "The same bits whatever the batch, K and order; slower. Dense Llama, Mistral, Qwen2, Qwen3; one device.",
    ),
)
