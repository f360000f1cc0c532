"""Which token says in what language a sentence is: ISO 639-1 tags to the tags of NLLB, SONAR and M2M100."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from clapkit.errors import ConfigError

# ISO 639-1 to the language tokens of NLLB-200 (NLLB Team, No Language Left Behind, 2022, arXiv 2207.04672, Table 1). Where a
# tag names a group of languages, the one that most people write; where there are two scripts, the more common one.
NLLB = dict(
    pair.split(":")
    for pair in """
    af:afr_Latn ak:aka_Latn am:amh_Ethi ar:arb_Arab as:asm_Beng ay:ayr_Latn az:azj_Latn ba:bak_Cyrl be:bel_Cyrl bg:bul_Cyrl
    bm:bam_Latn bn:ben_Beng bo:bod_Tibt bs:bos_Latn ca:cat_Latn cs:ces_Latn cy:cym_Latn da:dan_Latn de:deu_Latn dz:dzo_Tibt
    ee:ewe_Latn el:ell_Grek en:eng_Latn eo:epo_Latn es:spa_Latn et:est_Latn eu:eus_Latn fa:pes_Arab ff:fuv_Latn fi:fin_Latn
    fj:fij_Latn fo:fao_Latn fr:fra_Latn ga:gle_Latn gd:gla_Latn gl:glg_Latn gn:grn_Latn gu:guj_Gujr ha:hau_Latn he:heb_Hebr
    hi:hin_Deva hr:hrv_Latn ht:hat_Latn hu:hun_Latn hy:hye_Armn id:ind_Latn ig:ibo_Latn is:isl_Latn it:ita_Latn ja:jpn_Jpan
    jv:jav_Latn ka:kat_Geor kg:kon_Latn ki:kik_Latn kk:kaz_Cyrl km:khm_Khmr kn:kan_Knda ko:kor_Hang kr:knc_Latn ks:kas_Arab
    ku:kmr_Latn ky:kir_Cyrl lb:ltz_Latn lg:lug_Latn li:lim_Latn ln:lin_Latn lo:lao_Laoo lt:lit_Latn lv:lvs_Latn mg:plt_Latn
    mi:mri_Latn mk:mkd_Cyrl ml:mal_Mlym mn:khk_Cyrl mr:mar_Deva ms:zsm_Latn mt:mlt_Latn my:mya_Mymr nb:nob_Latn ne:npi_Deva
    nl:nld_Latn nn:nno_Latn no:nob_Latn ny:nya_Latn oc:oci_Latn om:gaz_Latn or:ory_Orya pa:pan_Guru pl:pol_Latn ps:pbt_Arab
    pt:por_Latn qu:quy_Latn rn:run_Latn ro:ron_Latn ru:rus_Cyrl rw:kin_Latn sa:san_Deva sc:srd_Latn sd:snd_Arab sg:sag_Latn
    si:sin_Sinh sk:slk_Latn sl:slv_Latn sm:smo_Latn sn:sna_Latn so:som_Latn sq:als_Latn sr:srp_Cyrl ss:ssw_Latn st:sot_Latn
    su:sun_Latn sv:swe_Latn sw:swh_Latn ta:tam_Taml te:tel_Telu tg:tgk_Cyrl th:tha_Thai ti:tir_Ethi tk:tuk_Latn tl:tgl_Latn
    tn:tsn_Latn tr:tur_Latn ts:tso_Latn tt:tat_Cyrl tw:twi_Latn ug:uig_Arab uk:ukr_Cyrl ur:urd_Arab uz:uzn_Latn vi:vie_Latn
    wo:wol_Latn xh:xho_Latn yi:ydd_Hebr yo:yor_Latn zh:zho_Hans zu:zul_Latn
    """.split()
)
NLLB_TOKEN = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
M2M100_TOKEN = re.compile(r"__([a-z]{2,3})__")
# Other names of the same language.
ALIASES = {"nb": "no", "fil": "tl", "cmn": "zh", "iw": "he", "in": "id", "ji": "yi"}
TRADITIONAL_CHINESE = {"tw", "hk", "mo"}


class Languages:
    """The language tokens of a tokenizer.

    Args:
        vocabulary: token -> id.

    Attributes:
        ids: tag in lower case, such as ``en``, ``eng`` or ``eng_latn`` -> id of its token; empty if the tokenizer has none.
        tells_scripts: whether there are tokens for one language in several scripts, as NLLB has.
    """

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        self.tells_scripts = any(token in vocabulary for token in NLLB.values())
        if self.tells_scripts:
            self.ids = _nllb_ids(vocabulary)
        else:
            found = {token: M2M100_TOKEN.fullmatch(token) for token in vocabulary}
            self.ids = {match[1]: vocabulary[token] for token, match in found.items() if match}

    def token_id(self, tag: str) -> int:
        """The id of a language's token.

        Args:
            tag: ``en``, ``en-US``, ``zh-Hant``, ``eng_Latn``; case does not matter.

        Raises:
            ConfigError: if the tokenizer has no such language.
        """
        name = self._name(tag)
        if name not in self.ids:
            known = ", ".join(sorted(name for name in self.ids if len(name) == 2))
            raise ConfigError(
                f"language {tag!r}: the text encoder has no such language; expected one of {known}, or a tag of its own"
            )
        return self.ids[name]

    def _name(self, tag: str) -> str:
        language, *rest = re.split("[-_]", tag.strip().lower())
        if language not in self.ids:
            language = ALIASES.get(language, language)
        script = next((part for part in rest if len(part) == 4 and part.isalpha()), None)
        if script is None and language == "zh" and TRADITIONAL_CHINESE.intersection(rest):
            script = "hant"
        if script is None or not self.tells_scripts:
            return language
        return f"{NLLB.get(language, language)[:3]}_{script}"


def _nllb_ids(vocabulary: Mapping[str, int]) -> dict[str, int]:
    tokens = [token for token in vocabulary if NLLB_TOKEN.fullmatch(token)]
    scripts = Counter(token[:3] for token in tokens)
    ids = {token.lower(): vocabulary[token] for token in tokens}
    # Three letters are enough where there is one script.
    ids |= {token[:3]: vocabulary[token] for token in tokens if scripts[token[:3]] == 1}
    for tag, token in NLLB.items():
        if token in vocabulary:
            ids[tag] = ids[token[:3]] = vocabulary[token]
    return ids
