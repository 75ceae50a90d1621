"""Closed lists of English words whose exchange changes the answer. Data only.

A word that is missing here costs a check, not the guarantee: what no list knows is left to the
verifier, which distrusts every exchanged word.
"""

from typing import Final


def _table(groups: str) -> dict[str, str]:
    """Each line names a canonical form and its spellings."""
    found: dict[str, str] = {}
    for line in groups.strip().splitlines():
        canonical, _, spellings = line.partition(":")
        for spelling in (canonical, *spellings.split()):
            found.setdefault(spelling.strip(), canonical.strip())
    return found


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


UNITS: Final = _table("""
mg: milligram milligrams
g: gram grams
kg: kilogram kilograms kilo kilos
lb: lbs pound pounds
oz: ounce ounces
mm: millimeter millimeters millimetre millimetres
cm: centimeter centimeters centimetre centimetres
m: meter meters metre metres
km: kilometer kilometers kilometre kilometres
mi: mile miles
ft: foot feet
in.: inch inches
yd: yard yards
ml: milliliter milliliters millilitre millilitres
l: liter liters litre litres
gal: gallon gallons
cup: cups
celsius: °c centigrade
fahrenheit: °f
kelvin:
ms: millisecond milliseconds
s: sec secs second seconds
min: mins minute minutes
h: hr hrs hour hours
day: days daily
week: weeks weekly
month: months monthly
year: years yearly annually annual yr yrs
usd: dollar dollars $ bucks
eur: euro euros €
gbp: £ sterling quid
jpy: yen ¥
inr: rupee rupees ₹ rs
byte: bytes
kb: kilobyte kilobytes
mb: megabyte megabytes
gb: gigabyte gigabytes
tb: terabyte terabytes
%: percent percentage pct
mph:
kmh: km/h kph
watt: watts w
kwh:
calorie: calories kcal cal
joule: joules
""")

NUMBER_WORDS: Final[dict[str, int]] = {
    word: value
    for value, words in {
        0: "zero",
        1: "one once single",
        2: "two twice double couple both pair",
        3: "three thrice triple",
        4: "four",
        5: "five",
        6: "six",
        7: "seven",
        8: "eight",
        9: "nine",
        10: "ten",
        11: "eleven",
        12: "twelve dozen",
        13: "thirteen",
        14: "fourteen",
        15: "fifteen",
        16: "sixteen",
        17: "seventeen",
        18: "eighteen",
        19: "nineteen",
        20: "twenty",
        30: "thirty",
        40: "forty",
        50: "fifty",
        60: "sixty",
        70: "seventy",
        80: "eighty",
        90: "ninety",
    }.items()
    for word in words.split()
}
MULTIPLIERS: Final = {
    "hundred": 100,
    "thousand": 1_000,
    "k": 1_000,
    "million": 1_000_000,
    "billion": 1_000_000_000,
    "trillion": 1_000_000_000_000,
}
ORDINALS: Final[dict[str, int]] = {
    word: value
    for value, word in enumerate(
        ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"), start=1
    )
} | {"half": -2, "quarter": -4, "1st": 1, "2nd": 2, "3rd": 3}

NEGATIONS: Final = _set(
    "not no never none neither nor without cannot nothing nobody nowhere hardly isn aren don"
    " doesn didn won wouldn shouldn couldn wasn weren haven hasn lacking minus avoid"
)
RESTRICTORS: Final = _set(
    "only except excluding unless until if all some every each any most exactly least maximum"
    " minimum free including this these those always sometimes rarely often instead also"
    " besides alone"
)

# Opposites and rivals: two texts may not stand on different sides of a line.
_OPPOSITES: Final = """
lock|unlock
first|last|next|previous
encrypt|decrypt
encode|decode
maximum|minimum
max|min
enable|disable
enabled|disabled
largest biggest greatest|smallest littlest tiniest
large big bigger larger|small smaller little
buy|sell|rent|lease
bought|sold|rented
buying purchase|selling sale|renting
increase raise grow|decrease lower reduce shrink
increasing rising|decreasing falling
increased rose|decreased fell
stop|start|pause|resume|restart
begin|end|finish
before|after|during
subscribe|unsubscribe
advantages advantage pros benefits benefit|disadvantages disadvantage cons drawbacks drawback risks
high higher highest|low lower lowest
on|off
open|close|shut
opened|closed
opening|closing
win|lose|draw
won|lost
winner|loser
best better|worst worse
good|bad
more most|less fewer least
long longer longest|short shorter shortest
tall taller tallest|short shorter shortest
old older oldest|young younger youngest|new newer newest
early earlier earliest|late later latest
fast faster fastest quick|slow slower slowest
hot hotter hottest warm|cold colder coldest cool
rich richer richest wealthy|poor poorer poorest
success successful|failure failed unsuccessful
happy|sad
easy easier easiest|hard harder hardest difficult
near nearest closest|far farthest
domestic|foreign international
mammal mammals|bird birds|fish|reptile reptiles|insect insects|amphibian amphibians
cheap cheaper cheapest|expensive dearer dearest costly
heavy heavier heaviest|light lighter lightest
strong stronger strongest|weak weaker weakest
add insert append|remove delete drop subtract
added|removed deleted
install|uninstall|upgrade|downgrade
import|export
upload|download
send|receive
push|pull
accept approve|reject deny decline refuse
accepted approved|rejected denied declined refused
allow permit|forbid prohibit block ban
legal|illegal
safe|unsafe dangerous
healthy|unhealthy
possible|impossible
true|false
positive|negative
male men man boy boys|female women woman girl girls
mother mom|father dad
brother|sister
son|daughter
husband|wife
king|queen
left|right
north|south|east|west
northern|southern|eastern|western
up|down
above over|below under beneath
inside|outside
indoor|outdoor
public|private
import|export
input|output
client|server
ascending|descending
horizontal|vertical
row rows|column columns
internal|external
morning|afternoon|evening|night
breakfast|lunch|dinner
summer|winter|spring|autumn fall
monday|tuesday|wednesday|thursday|friday|saturday|sunday
january jan|february feb|march|april|may|june|july|august|september|october|november|december
today|yesterday|tomorrow|tonight
past|present|future
black|white|red|green|blue|yellow|orange|purple|brown|pink|grey gray
dog dogs|cat cats
gain|lose
saving save|spending spend
deposit|withdraw|transfer
borrow|lend
arrive arrival|depart departure leave
create|destroy|edit|update
login signin|logout signout|signup register
attach|detach
connect|disconnect
mount|unmount
freeze|thaw|melt|boil
inhale|exhale
import|export
ask|answer
cause causes|effect effects|symptom symptoms|treatment treatments cure|prevention prevent
acid|base
credit|debit
profit|loss
asset assets|liability liabilities
gross|net
optimistic|pessimistic
formal|informal|casual
simple|complex complicated
beginner beginners|advanced expert experts|intermediate
child children kids|adult adults|teenager teenagers|senior seniors
daily|weekly|monthly|yearly
hire|fire
agree|disagree
like love|dislike hate
like|unlike
war|peace
offense|defense
attack|defend
mac macos|windows|linux|ubuntu
iphone ios|android
chrome|firefox|safari|edge
"""


def _sides(lines: str) -> dict[str, tuple[tuple[int, int], ...]]:
    found: dict[str, tuple[tuple[int, int], ...]] = {}
    for number, line in enumerate(lines.strip().splitlines()):
        for side, words in enumerate(line.split("|")):
            for word in words.split():
                found[word] = (*found.get(word, ()), (number, side))
    return found


OPPOSITES: Final = _sides(_OPPOSITES)

# Names whose set must be equal: languages people speak, languages machines read, output forms.
NAMED: Final = _set(
    "english french german spanish italian portuguese dutch polish russian ukrainian turkish arabic"
    " hebrew hindi bengali urdu tamil telugu chinese mandarin cantonese japanese korean vietnamese"
    " thai indonesian greek latin swedish norwegian danish finnish czech hungarian romanian"
    " python java javascript typescript rust golang ruby perl php kotlin swift scala haskell"
    " clojure elixir erlang fortran cobol matlab julia sql bash powershell html css c++ c# lua"
    " json yaml xml csv toml markdown latex pdf html table bullet bullets paragraph paragraphs"
    " sentence sentences essay poem haiku sonnet limerick email letter tweet story song speech"
    " list summary outline headline slogan title word words character characters line lines"
    " react angular vue django flask spring rails node mysql postgres postgresql sqlite mongodb"
    " redis kafka docker kubernetes aws azure gcp"
)
# These are languages only where the writer makes them look like one.
NAMED_AFTER_IN: Final = _set("go c r d swift")

ASKED: Final = {
    "who": "who",
    "whom": "who",
    "whose": "whose",
    "when": "when",
    "where": "where",
    "why": "why",
    "how": "how",
    "what": "what",
    "which": "what",
}
ASKED_YES_NO: Final = _set(
    "is are am was were do does did can could should would will has have had may must"
)
ASKED_HOW: Final = _set("many much long old often far tall big fast high deep heavy large late")
POSSESSIVES: Final = {
    "my": "mine",
    "our": "mine",
    "mine": "mine",
    "your": "yours",
    "his": "his",
    "her": "hers",
    "their": "theirs",
    "its": "its",
}
MODALS: Final = {
    "can": "can",
    "could": "can",
    "should": "should",
    "ought": "should",
    "must": "must",
    "need": "must",
    "may": "may",
    "might": "might",
}
# What is not said to be past, to come or supposed is taken as present.
TENSES: Final = {
    "was": "past",
    "were": "past",
    "did": "past",
    "had": "past",
    "been": "past",
    "will": "future",
    "would": "supposed",
}
# After these the role of a noun is fixed: "from A to B" is not "from B to A".
CONNECTORS: Final = _set(
    "from to into onto than against of by for with before after over under in on at vs versus via"
    " beats beat beating toward towards about as like near behind if because while when"
)

# Carry no content of their own: removed before words are compared.
FUNCTION_WORDS: Final = _set(
    "a an the of to in on at for with by from as and or but so that this these those it its is are"
    " am was were be been being do does did done have has had can could should would will shall may"
    " might must i me my we us our you your he she they him her his their what which who whom"
    " whose when where why how there here than then s t re ve ll d m if into about over under"
    " not no please very really actually exactly basically simply kindly just way"
)
SYNONYMS: Final = _table("""
buy: purchase
fix: repair
begin: start
assist: help
phone: smartphone cellphone mobile
picture: photo image photograph
film: movie
job: position
large: big
fast: quick quickly
difference: differences differ different distinguish
lose: losing
forgot: forgotten forget
method: technique approach
create: make build making creating
use: using used utilize
learn: learning study
cook: cooking
write: writing
doctor: physician
remove: delete removing deleting
show: display
choose: select pick
quit: leave
car: automobile
benefit: benefits advantage advantages pros
drawback: drawbacks disadvantage disadvantages cons
""")
