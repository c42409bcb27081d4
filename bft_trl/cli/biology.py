"""`bft-trl profiles, embed, cell-vectors, interactions, perturbation`: parse, call, say where the result is."""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def add_embedding_commands(commands: Any) -> None:
    """Adds the commands of this part to the subcommands of a parser."""
    _add_profiles(commands)
    _add_embed(commands)
    _add_cell_vectors(commands)
    _add_interactions(commands)
    _add_perturbation(commands)


def _add_profiles(commands: Any) -> None:
    profiles = commands.add_parser("profiles", help="profiles of genes in words, by a model or from texts that exist")
    profiles.add_argument(
        "--genes",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="text files (.txt), a symbol a line, or tables with gene, gene_a and gene_b, or perturbation",
    )
    profiles.add_argument(
        "--hgnc", type=Path, metavar="FILE", help="hgnc_complete_set.txt: says which symbols are outdated or unknown"
    )
    source = profiles.add_argument_group("source (one of: --model or --adapter, --texts, --gene-sets, --symbols)")
    source.add_argument("--model", metavar="BASE", help="Hub id or folder (default: the one that the adapter names)")
    source.add_argument("--adapter", type=Path, metavar="DIR", help="run folder or checkpoint of a PEFT adapter")
    source.add_argument("--texts", type=Path, metavar="FILE", help="gene, text: such as NCBI's summaries")
    source.add_argument("--gene-sets", type=Path, metavar="FILE", help="sets (GO terms) that each gene is in")
    source.add_argument("--symbols", action="store_true", help="the symbol alone: what an encoder makes of a name")
    profiles.add_argument("--out", type=Path, required=True, metavar="FILE", help="gene, text; a .parquet file")
    profiles.add_argument("--max-new-tokens", type=int, help="longest profile (default: 128)")
    profiles.add_argument("--batch-size", type=int, help="genes at once (default: 16)")
    profiles.add_argument("--temperature", type=float, help="0 is greedy, the default")
    profiles.add_argument("--seed", type=int, help="of sampling (default: 0)")
    _add_loading(profiles)
    profiles.add_argument(
        "--chat-template",
        action=argparse.BooleanOptionalAction,
        help="apply the chat template (default: where the tokenizer has one)",
    )
    profiles.set_defaults(run=_profiles)


def _add_embed(commands: Any) -> None:
    embed = commands.add_parser("embed", help="profiles to vectors")
    embed.add_argument("profiles", type=Path, metavar="PROFILES", help="table with gene and text")
    embed.add_argument(
        "--encoder", required=True, help='sentence encoder (Hub id or folder), or "self": the language model itself'
    )
    embed.add_argument("--out", type=Path, required=True, metavar="FILE", help="gene, vector; a .parquet file")
    embed.add_argument("--model", metavar="BASE", help="with self (default: the model that wrote the profiles)")
    embed.add_argument("--adapter", type=Path, metavar="DIR", help="with self (default: as for the profiles)")
    embed.add_argument("--batch-size", type=int, default=16, help="texts at once (default: 16)")
    embed.add_argument("--max-tokens", type=int, help="longer texts are cut (default: the encoder's, 512 with self)")
    _add_loading(embed)
    embed.set_defaults(run=_embed)


def _add_loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--load-in-4bit",
        action=argparse.BooleanOptionalAction,
        help="base weights in NF4 (default: as in training)",
    )
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: a GPU where there is one)")


def _add_cell_vectors(commands: Any) -> None:
    cells = commands.add_parser("cell-vectors", help="expression-weighted mean of gene vectors for each cell")
    cells.add_argument("--data", type=Path, required=True, metavar="FILE", help="AnnData (.h5ad)")
    cells.add_argument("--vectors", type=Path, required=True, metavar="FILE", help="gene, vector")
    cells.add_argument("--out", type=Path, required=True, metavar="FILE", help="cell, vector; a .parquet file")
    cells.set_defaults(run=_cell_vectors)


def _add_interactions(commands: Any) -> None:
    interactions = commands.add_parser("interactions", help="predict gene-gene interactions from gene vectors")
    for part, what in (("train", "fitted to"), ("valid", "chooses the classifier"), ("test", "scored")):
        interactions.add_argument(
            f"--{part}", type=Path, required=True, metavar="FILE", help=f"gene_a, gene_b, label; {what}"
        )
    _add_task(interactions, baseline="random")
    interactions.add_argument(
        "--training-sets",
        type=Path,
        metavar="FILE",
        help="gene sets of the adapter's training data: a second figure is on pairs that share none of them (default: "
        "those that ship)",
    )
    interactions.add_argument("--resamples", type=int, default=9999, help="bootstrap of the genes (default: 9999)")
    interactions.set_defaults(run=_interactions)


def _add_perturbation(commands: Any) -> None:
    perturbation = commands.add_parser(
        "perturbation", help="predict the expression change of unseen perturbations from gene vectors"
    )
    perturbation.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FILE",
        help="AnnData (.h5ad) with log expression, or a table perturbation, gene, delta[, fdr]",
    )
    perturbation.add_argument("--perturbation-column", metavar="NAME", help="of obs, with an AnnData")
    perturbation.add_argument("--control", metavar="VALUE", help="of that column: marks control cells")
    perturbation.add_argument("--counts", action="store_true", help="X holds counts: normalise, then log1p")
    perturbation.add_argument("--min-cells", type=int, help="of a perturbation (default: 10)")
    perturbation.add_argument(
        "--folds", type=int, metavar="K", help="by perturbation (default: leave one out; 5 above 100 perturbations)"
    )
    _add_task(perturbation, baseline="training_mean")
    perturbation.set_defaults(run=_perturbation)


def _add_task(parser: argparse.ArgumentParser, *, baseline: str) -> None:
    parser.add_argument(
        "--vectors", type=Path, nargs="+", required=True, metavar="FILE", help="gene, vector; the file's stem names it"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for results.json, index.html, ..."
    )
    parser.add_argument(
        "--baseline", default=baseline, help=f"vector set or control that the page compares with (default: {baseline})"
    )
    parser.add_argument(
        "--go", type=Path, metavar="FILE", help="gene sets: annotations and the map (default: shipped)"
    )
    parser.add_argument(
        "--colour-by",
        metavar="SET",
        help="gene set of --go in the map (default: the one with most genes that have a vector)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")


def _profiles(args: argparse.Namespace) -> int:
    from bft_trl.biology import profiles
    from bft_trl.biology.genes import read_genes, warn_of_outdated

    by_model = args.model is not None or args.adapter is not None
    sources = [by_model, args.texts is not None, args.gene_sets is not None, args.symbols]
    if sum(sources) != 1:
        raise ValueError("Name one source: --model or --adapter, --texts, --gene-sets, or --symbols.")
    given = _given(args, "max_new_tokens", "batch_size", "temperature", "seed", "device")
    loading = _given(args, "load_in_4bit", "chat_template")
    if (given or loading) and not by_model:
        raise ValueError(f"{', '.join(map(_flag, given | loading))}: only for profiles that a model writes.")
    if args.genes is None and (by_model or args.symbols):
        raise ValueError("--genes is needed: which genes are to be described?")
    genes = read_genes(args.genes) if args.genes else None
    if args.hgnc is not None:
        if genes is None:
            raise ValueError("--hgnc needs --genes.")
        warn_of_outdated(genes, args.hgnc)
    if args.texts is not None:
        made = profiles.profiles_of_texts(args.texts, genes, args.out)
    elif args.gene_sets is not None:
        made = profiles.profiles_of_gene_sets(args.gene_sets, genes, args.out)
    elif args.symbols:
        made = profiles.profiles_of_symbols(genes or [], args.out)
    else:
        from bft_trl.models import read_run

        run = read_run(args.model, args.adapter, **loading)
        made = profiles.write_profiles(genes or [], run, args.out, **given)
    logger.info(
        "%d profiles in %s, %d of them empty, %d cut at the length limit",
        *(made["n_genes"], args.out, made["n_empty"], made["n_unfinished"]),
    )
    return 0


def _embed(args: argparse.Namespace) -> int:
    from bft_trl.biology import vectors
    from bft_trl.biology.profiles import read_manifest, read_profiles

    read_profiles(args.profiles)  # before anything is loaded
    if args.encoder == "self":
        from bft_trl.models import read_run

        model, adapter, load_in_4bit = args.model, args.adapter, args.load_in_4bit
        if model is None and adapter is None:
            wrote = read_manifest(args.profiles)
            if not wrote.get("model"):
                raise ValueError(
                    "`encoder='self'`: no model wrote these profiles; name one with --model or --adapter."
                )
            model, adapter = wrote["model"], wrote.get("adapter") and Path(wrote["adapter"])
            if load_in_4bit is None:
                load_in_4bit = wrote.get("quantization") is not None
        made = vectors.embed_by_model(
            args.profiles,
            read_run(model, adapter, load_in_4bit=load_in_4bit),
            args.out,
            batch_size=args.batch_size,
            max_tokens=512 if args.max_tokens is None else args.max_tokens,
            device=args.device,
        )
    else:
        given = _given(args, "model", "adapter", "load_in_4bit", "device")
        if given:
            raise ValueError(f"{', '.join(map(_flag, given))}: only for `--encoder self`.")
        from bft_trl.encoders import Encoder

        encoder = Encoder(args.encoder, batch_size=args.batch_size, max_tokens=args.max_tokens)
        made = vectors.embed_profiles(args.profiles, encoder, args.out)
    logger.info("%d vectors of %d numbers in %s", made["n_genes"], made["dimension"], args.out)
    return 0


def _cell_vectors(args: argparse.Namespace) -> int:
    from bft_trl.biology.vectors import cell_vectors

    made = cell_vectors(args.data, args.vectors, args.out)
    logger.info("%d vectors in %s, %d cells without", made["n_cells"], args.out, made["n_cells_without"])
    return 0


def _interactions(args: argparse.Namespace) -> int:
    from bft_trl.biology.interactions import CONTROLS, score_interactions
    from bft_trl.biology.results import check_report, report_interactions

    reporting = _reporting(args) | {"seed": args.seed, "n_resamples": args.resamples}
    check_report([*(path.stem for path in args.vectors), *CONTROLS], **reporting)
    scored = score_interactions(
        *(args.train, args.valid, args.test),
        args.vectors,
        args.out,
        go=args.go,
        training_sets=args.training_sets,
        seed=args.seed,
    )
    scored.report["inputs"] = _inputs(args, "train", "valid", "test", "go", "training_sets")
    results = report_interactions(scored, args.out, **reporting)
    return _say(results, args.out, ("auroc", "average_precision", "auroc_no_shared_term"))


def _perturbation(args: argparse.Namespace) -> int:
    import numpy as np

    from bft_trl.biology.cells import changes_of_cells, changes_of_table, read_anndata
    from bft_trl.biology.perturbation import CONTROLS, METRICS, score_perturbations
    from bft_trl.biology.results import check_report, report_perturbation

    reporting = _reporting(args)
    check_report([*(path.stem for path in args.vectors), *CONTROLS], **reporting)
    if args.data.suffix == ".h5ad":
        if args.perturbation_column is None or args.control is None:
            raise ValueError("An AnnData needs --perturbation-column and --control.")
        changes = changes_of_cells(
            read_anndata(args.data),
            column=args.perturbation_column,
            control=args.control,
            counts=args.counts,
            **_given(args, "min_cells"),
            rng=np.random.default_rng(args.seed),
        )
    else:
        if args.counts or _given(args, "perturbation_column", "min_cells"):
            raise ValueError("--perturbation-column, --counts and --min-cells are for an AnnData (.h5ad).")
        changes = changes_of_table(args.data, control=args.control)
    scored = score_perturbations(changes, args.vectors, args.out, folds=args.folds, seed=args.seed)
    scored.report["inputs"] = _inputs(args, "data", "go")
    scored.report["options"] = _given(args, "perturbation_column", "control", "counts", "min_cells", "folds")
    results = report_perturbation(scored, args.out, **reporting)
    return _say(results, args.out, METRICS)


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given; for the others the function's own defaults hold."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _inputs(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Names and hashes of the files that were read, the manifests of vectors, and versions."""
    from importlib.metadata import version

    from bft_trl.biology.profiles import read_manifest
    from bft_trl.biology.vectors import described_file

    files = {name: described_file(path) for name, path in _given(args, *names).items()}
    vectors = {path.stem: described_file(path) | {"manifest": read_manifest(path)} for path in args.vectors}
    versions = {name: version(name) for name in ("bft-trl", "scikit-learn", "scipy", "numpy")}
    return files | {"vectors": vectors, "versions": versions}


def _reporting(args: argparse.Namespace) -> dict[str, Any]:
    from bft_trl.data.gene_sets import shipped_sets
    from bft_trl.data.tables import read_gene_sets

    return {
        "baseline": args.baseline,
        "gene_sets": shipped_sets() if args.go is None else read_gene_sets(args.go),
        "colour_by": args.colour_by,
    }


def _say(results: Mapping[str, Any], out: Path, metrics: tuple[str, ...]) -> int:
    for kind in ("vectors", "controls"):
        for name, figures in results[kind].items():
            found = [(metric, figures[metric]) for metric in metrics if figures.get(metric)]
            shown = [
                f"{metric} {estimate['value']:.3g} ({estimate['low']:.3g} to {estimate['high']:.3g})"
                for metric, estimate in found
                if None not in estimate.values()
            ]
            logger.info("%s%s: %s", "" if kind == "vectors" else "control ", name, ", ".join(shown))
    logger.info("Open %s", out / "index.html")
    return 0
