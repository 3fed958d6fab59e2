"""Words for training tables beyond those of `domains`: with a few hundred names a model learns the names, with
thousands it learns to copy.

Names are compounds of ordinary words; values are ordinary or made-up words in either case. All are drawn per schema.
"""

from __future__ import annotations

import random
from functools import cache

FRONTS = (
    "net|gross|daily|annual|initial|final|inner|outer|upper|lower|main|spare|early|late|local|remote"
    "|private|public|raw|smooth|heavy|light|quick|slow|hot|cold|dry|wet|sharp|blunt|thick|thin|wide|narrow"
    "|deep|shallow|loud|quiet|rough|fresh|stale|empty|full|solid|hollow|plain|fancy|rare|common|senior"
    "|junior|rural|urban|coastal|alpine|northern|southern|eastern|western|royal|civil|digital|manual"
    "|partial|complete|fixed|mobile|active|idle|primary|secondary"
)
NOUNS = (
    "anchor|antenna|apron|arrow|badge|banner|barrel|basket|beacon|belt|blanket|boiler|bottle|bracket"
    "|bucket|buffer|bundle|cabin|cable|camera|candle|canoe|canvas|carpet|carton|chamber|chain|chapter"
    "|charter|cheque|circuit|cluster|coin|collar|compass|cottage|counter|cradle|crane|curtain|cushion"
    "|dagger|deck|depot|desk|diagram|dial|diary|dock|donor|drawer|drum|elevator|envelope|exhibit|feather"
    "|fence|flag|flute|folder|fountain|frame|funnel|gadget|gallery|gauge|gear|generator|glove|goblet|grain"
    "|gutter|hammer|handle|hanger|helmet|hinge|hook|horn|hostel|jacket|jar|journal|kiosk|kitchen|kite|knob"
    "|lantern|lawn|leaflet|lens|lever|license|locker|loom|magnet|mantle|marker|mask|mattress|medal|mentor"
    "|meter|mill|module|monitor|motor|mural|needle|nozzle|oar|outlet|paddle|panel|parcel|pasture|patent"
    "|pebble|pedal|pencil|permit|pillar|pillow|pipe|piston|platform|plaza|plot|pocket|pond|poster|pouch"
    "|prism|probe|pulley|pump|puppet|quota|rack|radar|raft|rail|ramp|ranch|reel|relay|ribbon|rifle|rink"
    "|ritual|robot|rocket|roof|rotor|saddle|sample|scale|scanner|scarf|sculpture|sensor|session|shield"
    "|shovel|shutter|sketch|sled|sofa|socket|spindle|sponge|stadium|stall|statue|stove|strap|studio|survey"
    "|syringe|tablet|tailor|tavern|tent|terminal|ticket|tile|timer|token|tool|torch|tractor|trailer|tray"
    "|trench|tripod|trophy|tunnel|umbrella|vendor|vessel|vial|villa|violin|voucher|wagon|wallet|ward"
    "|wardrobe|warrant|waterfall|wheel|whistle|widget|winch|yacht|zipper|zone"
)
IN_Y = (
    "academy|agency|armory|battery|cannery|cemetery|colony|county|dairy|distillery|embassy|factory|ferry|foundry"
    "|gallery|laundry|library|ministry|monastery|nursery|pantry|party|pharmacy|refinery|society|story|treasury"
)
"""Nouns whose plural is not the singular and an s."""
SYLLABLES = (
    "ba|be|bi|bo|bu|da|de|di|do|du|fa|fe|fi|ga|ge|go|gu|ka|ke|ki|ko|ku|la|le|li|lo|lu|ma|me|mi|mo|mu|na"
    "|ne|ni|no|nu|pa|pe|pi|po|ra|re|ri|ro|ru|sa|se|si|so|su|ta|te|ti|to|tu|va|ve|vi|vo|za|ze|zi|zo|bran"
    "|cor|del|fen|gar|hel|jor|kel|lan|mer|nor|pel|rin|sol|tam|ul|ver|win|xan|yor"
)


@cache
def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


def table_name(random_: random.Random) -> str:
    """A singular whose plural `plural` can make: "lantern", "spare_lantern" or "gallery"."""
    if random_.random() < 0.25:
        return random_.choice(_words(IN_Y))
    word = random_.choice([noun for noun in _words(NOUNS) if not noun.endswith(("s", "x", "ch", "sh", "y"))])
    return word if random_.random() < 0.5 else f"{random_.choice(_words(FRONTS))}_{word}"


def plural(singular: str) -> str:
    return f"{singular[:-1]}ies" if singular.endswith("y") else f"{singular}s"


def column_name(random_: random.Random) -> str:
    """ "lantern", "spare_lantern" or "lantern_hinge"."""
    draw, word = random_.random(), random_.choice(_words(NOUNS))
    if draw < 0.4:
        return word
    if draw < 0.75:
        return f"{random_.choice(_words(FRONTS))}_{word}"
    other = random_.choice(_words(NOUNS))
    return f"{word}_{other}" if other != word else word


def listed_words(random_: random.Random, count: int) -> tuple[str, ...]:
    """Different words of one case, ordinary or made up: what a column may hold."""
    capital, found = random_.random() < 0.5, set[str]()
    while len(found) < count:
        word = random_.choice(_words(NOUNS))
        if random_.random() < 0.15:
            word = "".join(random_.choice(_words(SYLLABLES)) for _ in range(random_.choice((2, 2, 3))))
        found.add(word.capitalize() if capital else word)
    return tuple(sorted(found))
