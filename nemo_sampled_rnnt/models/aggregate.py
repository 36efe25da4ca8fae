"""Aggregate tokenizers, ``tokenizer.type: agg``: one tokenizer a language, their pieces one behind the other."""

from __future__ import annotations

from nemo.collections.common.tokenizers import AggregateTokenizer


class MultilingualTokenizer(AggregateTokenizer):
    """NeMo's, whose pieces need no language to become text: its CTC decoding names none, and stops."""

    def tokens_to_text(self, tokens, lang_id: str | None = None) -> str:
        if lang_id is not None:
            return super().tokens_to_text(tokens, lang_id)
        return "".join(tokens).replace("\u2581", " ")  # as ids_to_text, by which the transducer's decoding goes

    def spoken_to_ids(self, text: str | list, lang_id: str | None) -> list[int]:
        """Of a manifest's text in the language that it names, or in spans ``{"str": ..., "lang": ...}`` of several."""
        spans = text if isinstance(text, list) else [{"str": text, "lang": lang_id}]
        for span in spans:
            if span["lang"] not in self.langs:
                raise ValueError(
                    f"an aggregate tokenizer needs the language of each text, one of {', '.join(self.langs)}, but "
                    f"{span['str']!r} has lang {span['lang']!r}: name it in the manifest"
                )
        return [i for span in spans for i in self.text_to_ids(span["str"], span["lang"])]


class AggregateMixin:
    """A model whose aggregate tokenizer, if it has one, is a :class:`MultilingualTokenizer`."""

    def _setup_tokenizer(self, tokenizer_cfg):
        super()._setup_tokenizer(tokenizer_cfg)
        if type(self.tokenizer) is AggregateTokenizer:
            self.tokenizer = MultilingualTokenizer(self.tokenizer.tokenizers_dict)
