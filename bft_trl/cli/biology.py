"""`bft-trl profiles, embed, cell-vectors, interactions, perturbation`."""

import argparse
import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FILE: dict[str, Any] = {"type": Path, "metavar": "FILE"}
FILES: dict[str, Any] = FILE | {"nargs": "+"}
SWITCH: dict[str, Any] = {"action": argparse.BooleanOptionalAction}


def add_biology_commands(commands: Any) -> None:
    """Adds the commands to the subcommands of a parser."""
    _add_profiles(commands)
    _add_embed(commands)
    _add_cell_vectors(commands)
    _add_interactions(commands)
    _add_perturbation(commands)


def _add_profiles(commands: Any) -> None:
    profiles = commands.add_parser("profiles", help="write profiles of genes, by a model or from existing texts")
    add = profiles.add_argument
    add(
        "--genes",
        **FILES,
        help="symbols (.txt, one per line), or tables with gene, gene_a and gene_b, or perturbation",
    )
    add("--hgnc", **FILE, help="hgnc_complete_set.txt: warn about outdated and unknown symbols")
    _add_model(profiles, default="the base model of the adapter")
    add("--texts", **FILE, help="instead of a model: table of gene and text, such as NCBI's summaries")
    add("--gene_sets", **FILE, help="instead of a model: list the gene sets (GO terms) of each gene")
    add("--symbols", action="store_true", help="instead of a model: the symbol alone")
    add("--output_path", **FILE, required=True, help="gene, text; a .parquet file")
    add("--max_new_tokens", type=int, help="maximum length of a profile (default: 128)")
    add("--batch_size", type=int, help="genes per batch (default: 16)")
    add("--temperature", type=float, help="0 is greedy decoding (default: 0)")
    add("--seed", type=int, help="of the sampling (default: 0)")
    add("--apply_chat_template", **SWITCH, help="default: if the tokenizer has a chat template")
    profiles.set_defaults(run=_profiles)


def _add_embed(commands: Any) -> None:
    embed = commands.add_parser("embed", help="embed profiles")
    add = embed.add_argument
    add("profiles", type=Path, metavar="PROFILES", help="table of gene and text")
    add("--encoder", required=True, help='sentence encoder (Hub id or folder), or "self" for a language model')
    add("--output_path", **FILE, required=True, help="gene, vector; a .parquet file")
    _add_model(embed, default="with self, as for the profiles")
    add("--batch_size", type=int, default=16, help="texts per batch (default: 16)")
    add("--max_tokens", type=int, help="truncate longer texts (default: as the encoder does, or 512 with self)")
    embed.set_defaults(run=_embed)


def _add_cell_vectors(commands: Any) -> None:
    cells = commands.add_parser("cell-vectors", help="expression-weighted mean of gene vectors of each cell")
    cells.add_argument("--data", **FILE, required=True, help="AnnData (.h5ad)")
    cells.add_argument("--vectors", **FILE, required=True, help="gene, vector")
    cells.add_argument("--output_path", **FILE, required=True, help="cell, vector; a .parquet file")
    cells.set_defaults(run=_cell_vectors)


def _add_interactions(commands: Any) -> None:
    interactions = commands.add_parser("interactions", help="predict gene-gene interactions from gene vectors")
    add = interactions.add_argument
    for split, use in (("train", "fits"), ("valid", "chooses"), ("test", "evaluates")):
        add(f"--{split}", **FILE, required=True, help=f"gene_a, gene_b, label; {use} the classifier")
    _add_task(interactions, baseline="random")
    add("--training_sets", **FILE, help="gene sets of the adapter's training data (default: those that ship)")
    add("--resamples", dest="n_resamples", type=int, help="of the bootstrap over genes (default: 9999)")
    interactions.set_defaults(run=_interactions)


def _add_perturbation(commands: Any) -> None:
    perturbation = commands.add_parser(
        "perturbation", help="predict expression changes under unseen perturbations from gene vectors"
    )
    add = perturbation.add_argument
    add("--data", **FILE, required=True, help="AnnData (.h5ad), or a table of perturbation, gene, delta[, fdr]")
    add("--perturbation_column", metavar="NAME", help="column of obs (AnnData)")
    add("--control", metavar="VALUE", help="value of that column for control cells")
    add("--raw_counts", action="store_true", help="X contains counts: normalize, then log1p")
    add("--min_cells", type=int, help="per perturbation (default: 10)")
    add("--folds", type=int, help="number of folds (default: leave one out; 5 above 100 perturbations)")
    _add_task(perturbation, baseline="training_mean")
    perturbation.set_defaults(run=_perturbation)


def _add_model(parser: argparse.ArgumentParser, *, default: str) -> None:
    add = parser.add_argument
    add("--model_name_or_path", metavar="MODEL", help=f"Hub id or folder (default: {default})")
    add("--adapter", type=Path, metavar="DIR", help="output_dir or checkpoint of a training run")
    add("--load_in_4bit", **SWITCH, help="load the base model in NF4 (default: as in training)")
    add("--device", help="such as cpu or cuda:0 (default: a GPU if there is one)")


def _add_task(parser: argparse.ArgumentParser, *, baseline: str) -> None:
    add = parser.add_argument
    add("--vectors", **FILES, required=True, help="gene, vector; named by the file's stem")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="folder for the results and index.html")
    add("--baseline", help=f"vector set or control to compare with (default: {baseline})")
    add("--gene_sets", **FILE, help="for annotations and the map (default: those that ship)")
    add("--color_by", metavar="SET", help="gene set in the map (default: the one with most genes that have a vector)")
    add("--seed", type=int, default=0, help="default: 0")


def _profiles(args: argparse.Namespace) -> int:
    from bft_trl.biology import profiles
    from bft_trl.biology.genes import read_genes, warn_of_outdated

    by_model = args.model_name_or_path is not None or args.adapter is not None
    if sum([by_model, args.texts is not None, args.gene_sets is not None, args.symbols]) != 1:
        raise ValueError("Name one source: --model_name_or_path or --adapter, --texts, --gene_sets, or --symbols.")
    options = _given(args, "max_new_tokens", "batch_size", "temperature", "seed", "device")
    given = options | _given(args, "load_in_4bit", "apply_chat_template")
    if given and not by_model:
        raise ValueError(f"{_flags(given)}: only for profiles that a model writes.")
    if args.genes is None and (by_model or args.symbols or args.hgnc is not None):
        raise ValueError("--genes is needed.")
    genes = read_genes(args.genes) if args.genes else None
    if args.hgnc is not None:
        warn_of_outdated(genes or [], args.hgnc)
    if args.texts is not None:
        made = profiles.profiles_from_texts(args.texts, genes, args.output_path)
    elif args.gene_sets is not None:
        made = profiles.profiles_from_gene_sets(args.gene_sets, genes, args.output_path)
    elif args.symbols:
        made = profiles.profiles_from_symbols(genes or [], args.output_path)
    else:
        from bft_trl.models import read_run

        loading = {"load_in_4bit": args.load_in_4bit, "apply_chat_template": args.apply_chat_template}
        run = read_run(args.model_name_or_path, args.adapter, **loading)
        made = profiles.write_profiles(genes or [], run, args.output_path, **options)
    logger.info(
        "%d profiles in %s; %d are empty, %d reached the maximum length",
        *(made["n_genes"], args.output_path, made["n_empty"], made["n_unfinished"]),
    )
    return 0


def _embed(args: argparse.Namespace) -> int:
    from bft_trl.biology import vectors
    from bft_trl.biology.profiles import read_manifest, read_profiles

    read_profiles(args.profiles)  # before a model is loaded
    given = _given(args, "model_name_or_path", "adapter", "load_in_4bit", "device")
    if args.encoder != "self":
        if given:
            raise ValueError(f"{_flags(given)}: only for `--encoder self`.")
        from bft_trl.models import Encoder

        encoder = Encoder(args.encoder, batch_size=args.batch_size, max_tokens=args.max_tokens)
        made = vectors.embed_profiles(args.profiles, encoder, args.output_path)
    else:
        from bft_trl.models import read_run

        model, adapter, load_in_4bit = args.model_name_or_path, args.adapter, args.load_in_4bit
        if model is None and adapter is None:
            manifest = read_manifest(args.profiles)
            model, adapter = manifest.get("model"), manifest.get("adapter") and Path(manifest["adapter"])
            if not model:
                raise ValueError(
                    "`encoder='self'`: no model wrote these profiles. Name one with --model_name_or_path or --adapter."
                )
            if load_in_4bit is None:
                load_in_4bit = manifest.get("quantization") is not None
        run = read_run(model, adapter, load_in_4bit=load_in_4bit)
        options = _given(args, "batch_size", "max_tokens", "device")
        made = vectors.embed_by_model(args.profiles, run, args.output_path, **options)
    logger.info("%d vectors of %d dimensions in %s", made["n_genes"], made["dimension"], args.output_path)
    return 0


def _cell_vectors(args: argparse.Namespace) -> int:
    from bft_trl.biology.vectors import write_cell_vectors

    made = write_cell_vectors(args.data, args.vectors, args.output_path)
    logger.info("%d vectors in %s; %d cells without one", made["n_cells"], args.output_path, made["n_cells_without"])
    return 0


def _interactions(args: argparse.Namespace) -> int:
    from bft_trl.biology.interactions import run_interactions

    options = _given(args, "gene_sets", "training_sets", "baseline", "color_by", "seed", "n_resamples")
    metrics = run_interactions(args.train, args.valid, args.test, args.vectors, args.output_dir, **options)
    return _report(metrics, args.output_dir)


def _perturbation(args: argparse.Namespace) -> int:
    from bft_trl.biology.perturbation import run_perturbation

    options = _given(args, "perturbation_column", "control", "raw_counts", "min_cells", "folds")
    options |= _given(args, "gene_sets", "baseline", "color_by", "seed")
    metrics = run_perturbation(args.data, args.vectors, args.output_dir, **options)
    return _report(metrics, args.output_dir)


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; the functions have the defaults of the others."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _flags(names: Any) -> str:
    return ", ".join(f"--{name}" for name in names)


def _report(metrics: Any, output_dir: Path) -> int:
    shown = metrics[~metrics["metric"].str.endswith("_with_target")].dropna()
    for model, rows in shown.groupby("model", sort=False):
        values = (f"{row.metric} {row.value:.3g} ({row.low:.3g} to {row.high:.3g})" for row in rows.itertuples())
        logger.info("%s: %s", model, ", ".join(values))
    logger.info("Open %s", output_dir / "index.html")
    return 0
