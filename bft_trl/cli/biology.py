"""`bft-trl profiles, embed, interactions, perturbation`."""

import argparse
import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FILE: dict[str, Any] = {"type": Path, "metavar": "FILE"}
FILES: dict[str, Any] = FILE | {"nargs": "+"}


def add_biology_commands(commands: Any) -> None:
    """Adds the commands to the subcommands of a parser."""
    _add_profiles(commands)
    _add_embed(commands)
    _add_interactions(commands)
    _add_perturbation(commands)


def _add_profiles(commands: Any) -> None:
    profiles = commands.add_parser("profiles", help="write profiles of genes, by a model or from existing texts")
    add = profiles.add_argument
    add("--genes", **FILES, help="symbols (.txt, one per line), or tables with gene, or with gene_a and gene_b")
    _add_model(profiles)
    add("--texts", **FILE, help="instead of a model: table of gene and text, such as NCBI's summaries")
    add("--symbols", action="store_true", help="instead of a model: the symbol alone")
    add("--output_path", **FILE, required=True, help="gene, text; a .parquet file")
    add("--max_new_tokens", type=int, help="maximum length of a profile (default: 128)")
    add("--batch_size", type=int, help="genes per batch (default: 16)")
    profiles.set_defaults(run=_profiles)


def _add_embed(commands: Any) -> None:
    embed = commands.add_parser("embed", help="embed profiles by a sentence encoder, or by a language model")
    add = embed.add_argument
    add("profiles", type=Path, metavar="PROFILES", help="table of gene and text")
    add("--encoder", help="sentence encoder (Hub id or folder)")
    _add_model(embed)
    add("--output_path", **FILE, required=True, help="gene, vector; a .parquet file")
    add("--batch_size", type=int, help="texts per batch (default: 64, or 16 with a language model)")
    add("--max_tokens", type=int, help="truncate longer texts (default: as the encoder does, or 512)")
    embed.set_defaults(run=_embed)


def _add_interactions(commands: Any) -> None:
    interactions = commands.add_parser("interactions", help="predict gene-gene interactions from gene vectors")
    add = interactions.add_argument
    for split, use in (("train", "fits"), ("valid", "chooses"), ("test", "evaluates")):
        add(f"--{split}", **FILE, required=True, help=f"gene_a, gene_b, label; {use} the classifier")
    _add_task(interactions, baseline="random")
    add("--gene_sets", **FILE, help="of the control with annotations (default: those that ship)")
    add("--training_sets", **FILE, help="gene sets of the adapter's training data (default: those that ship)")
    add("--resamples", dest="n_resamples", type=int, help="of the bootstrap over genes (default: 9999)")
    interactions.set_defaults(run=_interactions)


def _add_perturbation(commands: Any) -> None:
    perturbation = commands.add_parser(
        "perturbation", help="predict expression changes under unseen perturbations from gene vectors"
    )
    add = perturbation.add_argument
    add("--data", **FILE, required=True, help="AnnData (.h5ad)")
    add("--perturbation_column", metavar="NAME", required=True, help="column of obs with the perturbed gene")
    add("--control", metavar="VALUE", required=True, help="value of that column for control cells")
    add("--raw_counts", action="store_true", help="X contains counts: normalize, then log1p")
    add("--min_cells", type=int, help="per perturbation (default: 10)")
    _add_task(perturbation, baseline="training_mean")
    perturbation.set_defaults(run=_perturbation)


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model_name_or_path", metavar="MODEL", help="Hub id or folder (default: the base model of the adapter)")
    add("--adapter", type=Path, metavar="DIR", help="output_dir or checkpoint of a training run")
    four_bit = "load the base model in NF4 (default: as in training)"
    add("--load_in_4bit", action=argparse.BooleanOptionalAction, help=four_bit)
    add("--device", help="such as cpu or cuda:0 (default: a GPU if there is one)")


def _add_task(parser: argparse.ArgumentParser, *, baseline: str) -> None:
    add = parser.add_argument
    add("--vectors", **FILES, required=True, help="gene, vector; named by the file's stem")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="folder for the results and index.html")
    add("--baseline", help=f"vector set or control to compare with (default: {baseline})")
    add("--seed", type=int, help="default: 0")


def _profiles(args: argparse.Namespace) -> int:
    from bft_trl.biology import profiles
    from bft_trl.biology.genes import read_genes

    by_model = args.model_name_or_path is not None or args.adapter is not None
    if sum([by_model, args.texts is not None, args.symbols]) != 1:
        raise ValueError("Name one source: --model_name_or_path or --adapter, --texts, or --symbols.")
    if args.genes is None and args.texts is None:
        raise ValueError("--genes is needed.")
    genes = read_genes(args.genes) if args.genes else None
    if args.texts is not None:
        made = profiles.profiles_from_texts(args.texts, genes, args.output_path)
    elif args.symbols:
        made = profiles.profiles_from_symbols(genes or [], args.output_path)
    else:
        options = _given(args, "max_new_tokens", "batch_size", "device")
        made = profiles.write_profiles(genes or [], _read_run(args), args.output_path, **options)
        logger.info("%d profiles reached the maximum length", (~made["finished"]).sum())
    logger.info("%d profiles in %s", len(made), args.output_path)
    return 0


def _embed(args: argparse.Namespace) -> int:
    from bft_trl.biology import vectors
    from bft_trl.biology.profiles import read_profiles
    from bft_trl.models import Encoder

    by_model = args.model_name_or_path is not None or args.adapter is not None
    if by_model == (args.encoder is not None):
        raise ValueError("Name one source: --encoder, or --model_name_or_path or --adapter.")
    read_profiles(args.profiles)  # before a model is loaded
    options = _given(args, "batch_size", "max_tokens")
    if by_model:
        options |= _given(args, "device")
        made = vectors.embed_by_model(args.profiles, _read_run(args), args.output_path, **options)
    else:
        made = vectors.embed_profiles(args.profiles, Encoder(args.encoder, **options), args.output_path)
    logger.info("%d vectors of %d dimensions in %s", *made.values.shape, args.output_path)
    return 0


def _interactions(args: argparse.Namespace) -> int:
    from bft_trl.biology.interactions import run_interactions

    options = _given(args, "gene_sets", "training_sets", "baseline", "seed", "n_resamples")
    metrics = run_interactions(args.train, args.valid, args.test, args.vectors, args.output_dir, **options)
    return _report(metrics, args.output_dir)


def _perturbation(args: argparse.Namespace) -> int:
    from bft_trl.biology.perturbation import run_perturbation

    options = _given(args, "perturbation_column", "control", "raw_counts", "min_cells", "baseline", "seed")
    return _report(run_perturbation(args.data, args.vectors, args.output_dir, **options), args.output_dir)


def _read_run(args: argparse.Namespace) -> Any:
    from bft_trl.models import read_run

    return read_run(args.model_name_or_path, args.adapter, load_in_4bit=args.load_in_4bit)


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; the functions have the defaults of the others."""
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def _report(metrics: Any, output_dir: Path) -> int:
    for model, rows in metrics.dropna().groupby("model", sort=False):
        values = (f"{row.metric} {row.value:.3g} ({row.low:.3g} to {row.high:.3g})" for row in rows.itertuples())
        logger.info("%s: %s", model, ", ".join(values))
    logger.info("Open %s", output_dir / "index.html")
    return 0
