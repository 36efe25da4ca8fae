"""Train a tokenizer from NeMo manifests or text files: the flags and the folders of NeMo's script of the same name.

    python examples/process_asr_text_tokenizer.py --manifest=train.json,more.json --data_root=tokenizers \
        --vocab_size=1024 --tokenizer=spe --spe_type=unigram --log

leaves `tokenizers/tokenizer_spe_unigram_v1024/{tokenizer.model,tokenizer.vocab,vocab.txt}`, for
`model.tokenizer.dir=tokenizers/tokenizer_spe_unigram_v1024 model.tokenizer.type=bpe` (NeMo says "bpe" for any
SentencePiece type). `--tokenizer=wpe` leaves `tokenizer_wpe_v1024/vocab.txt`, for `model.tokenizer.type=wpe`.

Unlike NeMo's script it imports no NeMo (one second, not ten) and reads the manifests again on every call, so that a
changed manifest is not shadowed by the corpus of an earlier run.
"""

import argparse
import json
import logging
from pathlib import Path

import sentencepiece

log = logging.getLogger("process_asr_text_tokenizer")

SPECIAL_PIECES = {"<s>", "</s>", "<pad>", "<unk>"}


def parser():
    """The command line of NeMo's script."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--manifest", help="NeMo manifests, separated by commas")
    source.add_argument("--data_file", help="text files with a sentence a line, separated by commas")
    p.add_argument("--data_root", required=True, type=Path, help="folder in which the tokenizer's folder is made")
    p.add_argument("--vocab_size", default=1024, type=int, help="number of pieces")
    p.add_argument("--tokenizer", default="wpe", choices=["spe", "wpe"], help="SentencePiece or BERT word pieces")
    p.add_argument("--no_lower_case", dest="lower_case", action="store_false", help="keep upper case as it is")
    p.add_argument("--spe_type", default="bpe", choices=["bpe", "unigram", "char", "word"])
    p.add_argument("--spe_character_coverage", default=1.0, type=float, help="0.9995 for Mandarin, Japanese, Korean")
    p.add_argument("--spe_bos", action="store_true", help="add <s>")
    p.add_argument("--spe_eos", action="store_true", help="add </s>")
    p.add_argument("--spe_pad", action="store_true", help="add <pad>")
    p.add_argument("--spe_user_defined_symbols", nargs="+", help="pieces to add; encoded from text and kept in it")
    p.add_argument("--spe_control_symbols", nargs="+", help="pieces to add; never encoded from text")
    p.add_argument("--spe_split_digits", action="store_true", help="each digit a piece of its own")
    p.add_argument("--spe_remove_extra_whitespaces", action="store_true", help="strip and squeeze white space")
    p.add_argument("--spe_sample_size", default=-1, type=int, help="train on so many sentences; -1: on all")
    p.add_argument("--spe_train_extremely_large_corpus", action="store_true")
    p.add_argument("--spe_max_sentencepiece_length", default=-1, type=int, help="longest piece; -1: 16")
    p.add_argument("--spe_no_split_by_unicode_script", dest="spe_split_by_unicode_script", action="store_false")
    p.add_argument("--spe_byte_fallback", action="store_true", help="unknown characters become bytes, not <unk>")
    p.add_argument("--log", action="store_true", help="say what is being done")
    return p


def existing(paths):
    """The files of a comma-separated list; FileNotFoundError names the one that is missing."""
    files = [Path(path.strip()).expanduser() for path in paths.split(",") if path.strip()]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"expected a file at {file}, found none; separate several files by commas")
    return files


def manifest_text(manifest):
    """The `text` of each line of a NeMo manifest."""
    with manifest.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f'{manifest}, line {number}: expected a JSON object with a "text" field, got {line.strip()[:80]!r}'
                ) from error


def write_corpus(manifests, data_root):
    """Write the text of all manifests to `data_root/text_corpus/document.txt`, where NeMo's script writes it."""
    document = data_root / "text_corpus" / "document.txt"
    document.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with document.open("w", encoding="utf-8") as out:
        for manifest in manifests:
            for text in manifest_text(manifest):
                out.write(text + "\n")
                count += 1
            log.info("read %s", manifest)
    if not count:
        raise ValueError(f"the manifests hold no sentence: {', '.join(map(str, manifests))}")
    log.info("%d sentences in %s", count, document)
    return document


def train_sentencepiece(files, folder, args):
    """Train SentencePiece on text files and write tokenizer.model, tokenizer.vocab and vocab.txt."""
    options = {}
    if args.spe_pad:
        options["pad_id"] = 1 + args.spe_bos + args.spe_eos  # the first id after <unk> and those of the two that are on
    if args.lower_case:
        options["normalization_rule_name"] = "nmt_nfkc_cf"
    if args.spe_train_extremely_large_corpus:
        options["train_extremely_large_corpus"] = True
    if args.spe_sample_size > 0:
        options["input_sentence_size"] = args.spe_sample_size
    if args.spe_max_sentencepiece_length > 0:
        options["max_sentencepiece_length"] = args.spe_max_sentencepiece_length
    sentencepiece.SentencePieceTrainer.train(
        input=[str(file) for file in files],
        model_prefix=str(folder / "tokenizer"),
        model_type=args.spe_type,
        vocab_size=args.vocab_size,
        hard_vocab_limit=False,  # a small corpus gives fewer pieces, not an error
        shuffle_input_sentence=True,
        character_coverage=args.spe_character_coverage,
        bos_id=1 if args.spe_bos else -1,
        eos_id=1 + args.spe_bos if args.spe_eos else -1,
        user_defined_symbols=args.spe_user_defined_symbols or [],
        control_symbols=args.spe_control_symbols or [],
        byte_fallback=args.spe_byte_fallback,
        split_digits=args.spe_split_digits,
        split_by_unicode_script=args.spe_split_by_unicode_script,
        remove_extra_whitespaces=args.spe_remove_extra_whitespaces,
        minloglevel=0 if args.log else 1,
        **options,
    )
    vocabulary = (folder / "tokenizer.vocab").read_text(encoding="utf-8").split("\n")
    pieces = [line.split("\t")[0] for line in vocabulary if line]
    if len(pieces) < args.vocab_size:
        log.warning("asked for %d pieces, the text gave %d", args.vocab_size, len(pieces))
    added = [*(args.spe_user_defined_symbols or []), *(args.spe_control_symbols or [])]
    write_vocab(pieces, SPECIAL_PIECES.union(added), folder)


def write_vocab(pieces, special, folder):
    """Write vocab.txt: the pieces in BERT's spelling, which NeMo keeps inside a `.nemo` file."""
    with (folder / "vocab.txt").open("w", encoding="utf-8") as out:
        for piece in pieces:
            if piece not in special:
                # "▁the" starts a word, "##ing" goes on with one; a lone "▁" stays itself
                out.write((piece[1:] or piece if piece.startswith("▁") else f"##{piece}") + "\n")


def train_wordpiece(files, folder, args):
    """Train a BERT word-piece vocabulary on text files and write vocab.txt."""
    from tokenizers import BertWordPieceTokenizer  # comes with transformers, which NeMo needs

    tokenizer = BertWordPieceTokenizer(lowercase=args.lower_case)
    tokenizer.train([str(file) for file in files], vocab_size=args.vocab_size, show_progress=args.log)
    tokenizer.save_model(str(folder))


def folder_name(args):
    """The folder's name, which spells the options as NeMo's script does."""
    if args.tokenizer == "wpe":
        return f"tokenizer_wpe_v{args.vocab_size}"
    name = f"tokenizer_spe_{args.spe_type}_v{args.vocab_size}"
    if args.spe_max_sentencepiece_length > 0:
        name += f"_max_{args.spe_max_sentencepiece_length}"
    return name + "_pad" * args.spe_pad + "_bos" * args.spe_bos + "_eos" * args.spe_eos


def main(argv=None):
    """Train the tokenizer that the command line asks for and return its folder."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if args.log else logging.WARNING, format="%(message)s")
    if args.vocab_size < 1:
        raise ValueError(f"--vocab_size: expected 1 or more, got {args.vocab_size}")

    folder = args.data_root / folder_name(args)
    folder.mkdir(parents=True, exist_ok=True)
    files = [write_corpus(existing(args.manifest), args.data_root)] if args.manifest else existing(args.data_file)
    train = train_sentencepiece if args.tokenizer == "spe" else train_wordpiece
    train(files, folder, args)
    print("Serialized tokenizer at location :", folder)
    return folder


if __name__ == "__main__":
    main()
