"""Small tables of facts and words from which tasks are made.

Facts are kept as text, one ``key=value`` per semicolon: short to read, cheap to check.
"""


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.strip().split("=") for pair in text.split(";") if pair.strip())


# Countries with one undisputed capital of one name.
CAPITALS = _pairs("""
Afghanistan=Kabul; Albania=Tirana; Algeria=Algiers; Angola=Luanda; Argentina=Buenos Aires;
Armenia=Yerevan; Australia=Canberra; Austria=Vienna; Azerbaijan=Baku; the Bahamas=Nassau;
Bahrain=Manama; Bangladesh=Dhaka; Barbados=Bridgetown; Belarus=Minsk; Belgium=Brussels;
Belize=Belmopan; Bhutan=Thimphu; Bosnia and Herzegovina=Sarajevo; Botswana=Gaborone;
Brazil=Brasília; Bulgaria=Sofia; Burkina Faso=Ouagadougou; Cambodia=Phnom Penh; Cameroon=Yaoundé;
Canada=Ottawa; Chad=N'Djamena; Chile=Santiago; China=Beijing; Colombia=Bogotá; Costa Rica=San José;
Croatia=Zagreb; Cuba=Havana; Cyprus=Nicosia; Denmark=Copenhagen; the Dominican Republic=Santo Domingo;
Ecuador=Quito; Egypt=Cairo; El Salvador=San Salvador; Eritrea=Asmara; Estonia=Tallinn;
Ethiopia=Addis Ababa; Fiji=Suva; Finland=Helsinki; France=Paris; Gabon=Libreville;
Georgia=Tbilisi; Germany=Berlin; Ghana=Accra; Greece=Athens; Guatemala=Guatemala City;
Guinea=Conakry; Guyana=Georgetown; Haiti=Port-au-Prince; Honduras=Tegucigalpa; Hungary=Budapest;
Iceland=Reykjavik; India=New Delhi; Indonesia=Jakarta; Iran=Tehran; Iraq=Baghdad; Ireland=Dublin;
Italy=Rome; Jamaica=Kingston; Japan=Tokyo; Jordan=Amman; Kazakhstan=Astana; Kenya=Nairobi;
Kuwait=Kuwait City; Kyrgyzstan=Bishkek; Laos=Vientiane; Latvia=Riga; Lebanon=Beirut;
Liberia=Monrovia; Libya=Tripoli; Liechtenstein=Vaduz; Lithuania=Vilnius; Madagascar=Antananarivo;
Malawi=Lilongwe; Malaysia=Kuala Lumpur; the Maldives=Malé; Mali=Bamako; Malta=Valletta;
Mauritania=Nouakchott; Mauritius=Port Louis; Mexico=Mexico City; Moldova=Chisinau; Mongolia=Ulaanbaatar;
Montenegro=Podgorica; Morocco=Rabat; Mozambique=Maputo; Namibia=Windhoek; Nepal=Kathmandu;
the Netherlands=Amsterdam; New Zealand=Wellington; Nicaragua=Managua; Niger=Niamey; Nigeria=Abuja;
North Korea=Pyongyang; North Macedonia=Skopje; Norway=Oslo; Oman=Muscat; Pakistan=Islamabad;
Papua New Guinea=Port Moresby; Paraguay=Asunción; Peru=Lima; the Philippines=Manila;
Poland=Warsaw; Portugal=Lisbon; Qatar=Doha; Romania=Bucharest; Russia=Moscow; Rwanda=Kigali;
Samoa=Apia; Saudi Arabia=Riyadh; Senegal=Dakar; Serbia=Belgrade; Sierra Leone=Freetown;
Slovakia=Bratislava; Slovenia=Ljubljana; Somalia=Mogadishu; South Korea=Seoul; Spain=Madrid;
Sudan=Khartoum; Suriname=Paramaribo; Sweden=Stockholm; Switzerland=Bern; Syria=Damascus;
Taiwan=Taipei; Tajikistan=Dushanbe; Thailand=Bangkok; Togo=Lomé; Tonga=Nuku'alofa;
Trinidad and Tobago=Port of Spain; Tunisia=Tunis; Turkey=Ankara; Turkmenistan=Ashgabat;
Uganda=Kampala; Ukraine=Kyiv; the United Arab Emirates=Abu Dhabi; the United Kingdom=London;
the United States=Washington; Uruguay=Montevideo; Uzbekistan=Tashkent; Vanuatu=Port Vila;
Venezuela=Caracas; Vietnam=Hanoi; Yemen=Sana'a; Zambia=Lusaka; Zimbabwe=Harare
""")

CAPITAL_SPELLINGS = {
    "Kyiv": ("Kiev",), "Washington": ("Washington, D.C.", "Washington D.C.", "Washington DC"),
    "Bern": ("Berne",), "Chisinau": ("Chișinău",), "Reykjavik": ("Reykjavík",),
    "Astana": ("Nur-Sultan",), "Ulaanbaatar": ("Ulan Bator",), "Sana'a": ("Sanaa",),
    "N'Djamena": ("Ndjamena",), "Nuku'alofa": ("Nukualofa",),
}  # fmt: skip

# City that people take for the capital.
LARGEST_CITIES = _pairs("""
Australia=Sydney; Brazil=São Paulo; Canada=Toronto; Turkey=Istanbul; Switzerland=Zurich;
New Zealand=Auckland; Nigeria=Lagos; Morocco=Casablanca; Vietnam=Ho Chi Minh City;
Kazakhstan=Almaty; China=Shanghai; India=Mumbai; Pakistan=Karachi; the United States=New York;
the United Arab Emirates=Dubai; Ecuador=Guayaquil; Cameroon=Douala
""")

ELEMENTS = _pairs("""
hydrogen=H; helium=He; lithium=Li; beryllium=Be; boron=B; carbon=C; nitrogen=N; oxygen=O;
fluorine=F; neon=Ne; sodium=Na; magnesium=Mg; aluminium=Al; silicon=Si; phosphorus=P; sulfur=S;
chlorine=Cl; argon=Ar; potassium=K; calcium=Ca; scandium=Sc; titanium=Ti; vanadium=V; chromium=Cr;
manganese=Mn; iron=Fe; cobalt=Co; nickel=Ni; copper=Cu; zinc=Zn; gallium=Ga; germanium=Ge;
arsenic=As; selenium=Se; bromine=Br; krypton=Kr; rubidium=Rb; strontium=Sr; yttrium=Y;
zirconium=Zr; niobium=Nb; molybdenum=Mo; technetium=Tc; ruthenium=Ru; rhodium=Rh; palladium=Pd;
silver=Ag; cadmium=Cd; indium=In; tin=Sn; antimony=Sb; tellurium=Te; iodine=I; xenon=Xe;
caesium=Cs; barium=Ba; lanthanum=La; cerium=Ce; neodymium=Nd; samarium=Sm; europium=Eu;
gadolinium=Gd; terbium=Tb; erbium=Er; ytterbium=Yb; hafnium=Hf; tantalum=Ta; tungsten=W;
rhenium=Re; osmium=Os; iridium=Ir; platinum=Pt; gold=Au; mercury=Hg; thallium=Tl; lead=Pb;
bismuth=Bi; polonium=Po; astatine=At; radon=Rn; francium=Fr; radium=Ra; thorium=Th; uranium=U;
neptunium=Np; plutonium=Pu
""")

ELEMENT_SPELLINGS = {"aluminium": ("aluminum",), "sulfur": ("sulphur",), "caesium": ("cesium",)}

LANGUAGES = ("Spanish", "French", "German", "Italian")

# english: spanish, french, german, italian; a slash parts equally good words.
TRANSLATIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    english: tuple(tuple(words.split("/")) for words in others.split(","))
    for english, others in _pairs("""
water=agua,eau,Wasser,acqua; bread=pan,pain,Brot,pane; milk=leche,lait,Milch,latte;
house=casa,maison,Haus,casa; dog=perro,chien,Hund,cane; cat=gato,chat,Katze,gatto;
book=libro,livre,Buch,libro; friend=amigo/amiga,ami/amie,Freund/Freundin,amico/amica;
day=día,jour/journée,Tag,giorno; night=noche,nuit,Nacht,notte; sun=sol,soleil,Sonne,sole;
moon=luna,lune,Mond,luna; red=rojo/roja,rouge,rot,rosso/rossa; green=verde,vert/verte,grün,verde;
white=blanco/blanca,blanc/blanche,weiß/weiss,bianco/bianca; black=negro/negra,noir/noire,schwarz,nero/nera;
blue=azul,bleu/bleue,blau,blu/azzurro; yellow=amarillo/amarilla,jaune,gelb,giallo/gialla;
one=uno/un/una,un/une,eins/ein/eine,uno/un/una; two=dos,deux,zwei,due; three=tres,trois,drei,tre;
four=cuatro,quatre,vier,quattro; five=cinco,cinq,fünf,cinque; ten=diez,dix,zehn,dieci;
apple=manzana,pomme,Apfel,mela; cheese=queso,fromage,Käse,formaggio; fish=pez/pescado,poisson,Fisch,pesce;
egg=huevo,œuf/oeuf,Ei,uovo; meat=carne,viande,Fleisch,carne; salt=sal,sel,Salz,sale;
wine=vino,vin,Wein,vino; coffee=café,café,Kaffee,caffè; tea=té,thé,Tee,tè;
door=puerta,porte,Tür,porta; window=ventana,fenêtre,Fenster,finestra; table=mesa,table,Tisch,tavolo/tavola;
chair=silla,chaise,Stuhl,sedia; school=escuela,école,Schule,scuola; city=ciudad,ville,Stadt,città;
street=calle,rue,Straße/Strasse,strada/via; car=coche/carro/auto/automóvil,voiture/auto/automobile,Auto/Wagen,macchina/auto/automobile;
train=tren,train,Zug,treno; tree=árbol,arbre,Baum,albero; flower=flor,fleur,Blume,fiore;
mother=madre,mère,Mutter,madre; father=padre,père,Vater,padre; brother=hermano,frère,Bruder,fratello;
sister=hermana,sœur/soeur,Schwester,sorella; child=niño/niña,enfant,Kind,bambino/bambina;
man=hombre,homme,Mann,uomo; woman=mujer,femme,Frau,donna; hand=mano,main,Hand,mano;
head=cabeza,tête,Kopf,testa; heart=corazón,cœur/coeur,Herz,cuore; eye=ojo,œil/oeil,Auge,occhio;
year=año,an/année,Jahr,anno; week=semana,semaine,Woche,settimana; month=mes,mois,Monat,mese;
today=hoy,aujourd'hui,heute,oggi; tomorrow=mañana,demain,morgen,domani; yesterday=ayer,hier,gestern,ieri;
good=bueno/buena,bon/bonne,gut,buono/buona/bravo; big=grande,grand/grande/gros,groß/gross,grande;
small=pequeño/pequeña,petit/petite,klein,piccolo/piccola; new=nuevo/nueva,nouveau/nouvelle/neuf,neu,nuovo/nuova;
fire=fuego,feu,Feuer,fuoco; snow=nieve,neige,Schnee,neve; rain=lluvia,pluie,Regen,pioggia;
bird=pájaro/ave,oiseau,Vogel,uccello; horse=caballo,cheval,Pferd,cavallo; king=rey,roi,König,re
""").items()
}  # fmt: skip

# right spelling=common misspelling
MISSPELLINGS = _pairs("""
accommodate=accomodate; achieve=acheive; address=adress; apparent=apparant; argument=arguement;
beautiful=beautifull; because=becuase; beginning=begining; believe=beleive; business=buisness;
calendar=calender; category=catagory; cemetery=cemetary; colleague=collegue; committee=comittee;
completely=completly; conscious=concious; definitely=definately; desperate=desparate;
different=diffrent; disappear=dissapear; disappoint=dissapoint; discipline=disipline;
embarrass=embarass; environment=enviroment; equipment=equiptment; existence=existance;
experience=experiance; familiar=familar; february=febuary; finally=finaly; foreign=foriegn;
forty=fourty; forward=foward; friend=freind; government=goverment; grammar=grammer;
grateful=greatful; guarantee=garantee; happened=happend; harass=harrass; height=heigth;
humorous=humourous; immediately=immediatly; important=importent; independent=independant;
interest=intrest; interrupt=interupt; knowledge=knowlege; leisure=liesure; library=libary;
license=lisence; maintenance=maintainance; millennium=millenium; necessary=neccessary;
neighbor=nieghbor; noticeable=noticable; occasion=ocassion; occurred=occured; parallel=paralell;
particular=particuler; perseverance=perserverance; possession=posession; preferred=prefered;
privilege=priviledge; probably=probaly; professor=proffesor; pronunciation=pronounciation;
publicly=publically; really=realy; receive=recieve; recommend=recomend; referred=refered;
relevant=relevent; religious=religous; remember=remeber; restaurant=restaraunt; rhythm=rythm;
schedule=shedule; science=sceince; secretary=secratary; seize=sieze; separate=seperate;
similar=similer; sincerely=sincerly; strength=strenght; success=sucess; surprise=suprise;
temperature=temprature; tomorrow=tommorow; tongue=tounge; truly=truely; until=untill;
usually=usualy; vacuum=vaccum; weird=wierd; which=wich; wednesday=wensday; writing=writting;
yield=yeild
""")

# Plain facts that nobody disputes: what it is, what it is not.
MEMBERS: dict[str, tuple[str, ...]] = {
    key: tuple(words.split(","))
    for key, words in _pairs("""
mammal=dog,cat,whale,horse,elephant,lion,dolphin,cow,rabbit,bear;
bird=eagle,sparrow,penguin,owl,parrot,duck,ostrich,crow,swan,robin;
fish=salmon,trout,shark,tuna,cod,herring,carp,goldfish,sardine,eel;
fruit=apple,banana,orange,pear,grape,mango,peach,cherry,lemon,plum;
musical instrument=piano,violin,guitar,trumpet,flute,cello,drum,harp,clarinet,saxophone;
metal=iron,copper,gold,silver,zinc,tin,lead,aluminium,nickel,platinum;
planet=Mars,Venus,Jupiter,Saturn,Mercury,Neptune,Uranus,Earth;
month=January,April,June,August,October,December,March,May;
programming language=Python,Java,Rust,Ruby,Haskell,Kotlin,Fortran,Perl
""").items()
}  # fmt: skip

NAMES = tuple(
    "Anna Ben Clara David Elena Felix Grace Hugo Irene Jonas Karen Leo Maria Nina Oscar Paula"
    " Robert Sofia Thomas Victor Wendy Yusuf Zoe Amir Bianca Carlos Diana Emil Farah Giulia".split()
)
SURNAMES = tuple(
    "Adams Becker Carter Diaz Evans Fischer Garcia Hansen Ito Jensen Keller Lopez Meyer Novak Olsen"
    " Parker Quinn Rossi Silva Turner Vogel Weber Young Zimmer Brandt Costa Duran Ferris".split()
)
CITIES = tuple(
    "Berlin Madrid Paris Oslo Vienna Lisbon Chicago Boston Denver Toronto Dublin Prague Milan"
    " Seattle Austin Geneva Hamburg Lyon Porto Zurich Bergen Leeds Bristol Turin".split()
)
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PRODUCTS = tuple(
    "keyboard,desk lamp,backpack,coffee machine,headset,office chair,monitor,water bottle,printer,"
    "tablet,camera,bicycle,jacket,phone case,router,notebook,kettle,blender".split(",")
)
