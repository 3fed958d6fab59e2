# ruff: noqa: E501  (one table a line)
"""The subjects of the demo's tables, as text that `schemas.parse` reads.

    plural/singular > parent: column kind; column? kind; …        a blank line ends a domain, `?` may be NULL

    kinds   person title place email site phone code · i low high · r low high (one decimal) · d from-year to-year
            A|B|C one of these words · $country and its like, a shared list of words

TRAIN and TEST share no table and, but for `id` and `name`, no column: a test holds us to it.
"""

from __future__ import annotations

TRAIN = """
authors/author: name person; nationality $country; birth_year i 1900 1990; awards i 0 40; website? site
books/book > authors: title title; genre Poetry|Drama|Crime|Fantasy|History|Travel; pages i 80 900; price r 5 60; release_date d 2001 2023; isbn? code

departments/department: name Sales|Finance|Legal|Research|Support|Design|Logistics|Security; budget i 50 990; floor i 1 9; manager person; phone? phone
employees/employee > departments: name person; job Clerk|Analyst|Engineer|Director|Intern; salary i 1500 9800; age i 19 66; hire_date d 2005 2023; email? email

customers/customer: name person; city $city; credit i 0 5000; signup_date d 2015 2023; email? email; segment Retail|Business|Student|Senior
purchases/purchase > customers: status open|paid|shipped|returned; invoice r 10 900; order_date d 2020 2023; items i 1 30; coupon? code
payments/payment > purchases: method cash|card|check|transfer; amount r 5 800; payment_date d 2020 2023; reference? code

suppliers/supplier: company title; country $country; rating r 1 10; founding_year i 1950 2020; contact? person
products/product > suppliers: name title; category Toys|Garden|Kitchen|Office|Sports|Music; price r 1 300; stock i 0 500; weight r 1 50; color? $color

students/student: name person; major Physics|Biology|Law|Art|Economics|Medicine; age i 17 40; gpa r 1 4; advisor? person
enrollments/enrollment > students: course title; grade i 1 100; semester Spring|Summer|Fall|Winter; credits i 1 12; comment? title

teachers/teacher: name person; subject Math|French|Chemistry|Geography|Latin; experience i 0 40; office? code; salary i 2000 7000
classes/class > teachers: title title; room i 100 399; capacity i 8 60; level beginner|intermediate|advanced; start_date d 2019 2023

doctors/doctor: name person; specialty Cardiology|Neurology|Surgery|Oncology|Dentistry; experience i 1 45; fee r 40 400; pager? phone
patients/patient > doctors: name person; age i 1 98; blood_type A|B|AB|O; weight r 30 140; admission_date d 2018 2023; allergy? Nuts|Pollen|Dust|Latex
visits/visit > patients: reason Checkup|Fever|Injury|Vaccine; duration i 5 120; cost r 20 700; visit_date d 2020 2023; note? title

airlines/airline: name title; country $country; fleet_size i 3 400; founding_year i 1930 2015; hotline? phone
flights/flight > airlines: code code; origin $city; destination $city; distance i 150 9900; seats i 40 500; fare r 30 999; gate? code

hotels/hotel: name title; city $city; stars i 1 5; rooms i 10 400; opening_date d 1980 2020; website? site
bookings/booking > hotels: guest person; nights i 1 21; price r 50 990; arrival d 2021 2023; channel phone|web|agency|desk; request? title

artists/artist: name person; country $country; birth_year i 1930 2003; followers i 100 9900; label? title
albums/album > artists: title title; genre Rock|Jazz|Folk|Blues|Soul|Metal; tracks i 5 25; release_date d 1990 2023; rating r 1 10; producer? person
songs/song > albums: title title; duration i 90 600; plays i 10 9900; language English|Spanish|German|Korean; composer? person

directors/director: name person; nationality $country; birth_year i 1920 1992; awards i 0 30; agent? person
movies/movie > directors: title title; genre Comedy|Thriller|Western|Horror|Romance; runtime i 70 240; gross r 1 900; release_date d 1985 2023; sequel? title

teams/team: name title; city $city; titles i 0 40; budget r 1 300; sponsor? title; founding_year i 1880 2010
players/player > teams: name person; position goalkeeper|defender|midfielder|striker; goals i 0 90; age i 17 41; salary r 1 90; nickname? title

restaurants/restaurant: name title; cuisine Thai|Italian|Mexican|Greek|Indian|Korean; city $city; rating r 1 10; seats i 10 200; website? site
reviews/review > restaurants: author person; score i 1 10; likes i 0 300; review_date d 2019 2023; reply? title; device phone|tablet|laptop

warehouses/warehouse: location $city; capacity i 100 9900; manager person; area i 200 5000; alarm_code? code
shipments/shipment > warehouses: carrier Northline|Swift|Parcelo|Rapid; weight r 1 900; cost r 5 700; ship_date d 2020 2023; status pending|moving|lost|delivered; tracking? code

farms/farm: name title; region $region; acres i 10 900; owner person; certificate? code
harvests/harvest > farms: crop Wheat|Corn|Barley|Rice|Oats; tons r 1 300; harvest_date d 2015 2023; quality poor|fair|good|excellent; buyer? title

museums/museum: name title; city $city; visitors i 100 9900; entry_fee r 1 40; curator? person
paintings/painting > museums: title title; painter person; style Baroque|Cubism|Realism|Gothic; year i 1500 1990; value r 1 900; donor? person

libraries/library: name title; town $city; shelves i 10 800; opening_year i 1850 2015; director? person
members/member > libraries: name person; age i 6 90; loans i 0 80; join_date d 2005 2023; card_type basic|silver|gold; email? email

banks/bank: name title; country $country; branches i 1 900; assets r 1 900; slogan? title
accounts/account > banks: owner person; type savings|checking|student|joint; balance r 1 990; opening_day d 2001 2023; overdraft? i 100 900
transfers/transfer > accounts: amount r 1 900; currency EUR|USD|GBP|JPY; transfer_date d 2020 2023; purpose? title; risk i 1 100

courses/course: title title; department History|Geology|Music|Nursing; credits i 1 12; hours i 10 90; textbook? title
exams/exam > courses: room i 100 500; difficulty easy|medium|hard|brutal; questions i 5 80; exam_date d 2018 2023; mark r 20 100; proctor? person

gyms/gym: name title; city $city; monthly_fee r 10 120; machines i 5 150; trainer? person
workouts/workout > gyms: athlete person; activity Rowing|Running|Boxing|Cycling; minutes i 10 180; calories i 50 990; workout_date d 2021 2023; injury? Knee|Back|Ankle

cars/car: model title; maker Fordan|Toyama|Reno|Volvar; color $color; year i 1995 2023; price r 2 90; plate? code
repairs/repair > cars: part Brake|Engine|Tyre|Battery|Clutch; cost r 20 900; hours i 1 30; repair_date d 2015 2023; mechanic? person

landlords/landlord: name person; city $city; properties i 1 40; age i 25 85; phone? phone
apartments/apartment > landlords: street title; rooms i 1 8; rent i 300 3900; area r 20 200; heating gas|oil|electric|solar; tenant? person

publishers/publisher: name title; country $country; employees_count i 5 900; revenue r 1 500; website? site
magazines/magazine > publishers: title title; topic Fashion|Science|Cooking|Cars|Politics; circulation i 100 9900; price r 1 20; first_issue d 1970 2020; editor? person
articles/article > magazines: headline title; words i 200 5000; reporter person; section cover|feature|opinion|news; views i 10 9900; photo? code

ships/ship: name title; type tanker|ferry|cruiser|trawler; length i 20 390; construction_year i 1960 2022; captain? person
voyages/voyage > ships: departure_port $city; days i 1 60; cargo_tons r 1 900; sail_date d 2015 2023; passengers i 0 900; incident? title

parks/park: name title; state $region; size i 10 9000; founding_year i 1890 2010; warden? person
animals/animal > parks: species Wolf|Bear|Deer|Otter|Lynx|Eagle; nickname title; weight r 1 400; age i 1 40; sighting_date d 2012 2023; tag? code

cinemas/cinema: name title; city $city; screens i 1 20; opening_year i 1930 2020; owner? person
screenings/screening > cinemas: film title; tickets_sold i 0 400; price r 4 25; show_date d 2019 2023; format digital|analog|imax; host? person

clinics/clinic: name title; region $region; beds i 5 300; rating r 1 10; fax? phone
nurses/nurse > clinics: name person; shift day|evening|night; salary i 1800 6000; age i 21 64; hire_date d 2003 2023; languages? English|Polish|Turkish

projects/project: title title; client title; budget r 1 900; priority low|normal|high|urgent; deadline d 2021 2025; sponsor? person
tasks/task > projects: title title; assignee person; hours i 1 90; status todo|doing|blocked|done; due_date d 2020 2024; blocker? title

factories/factory: name title; country $country; workers i 20 990; output i 100 9900; inspector? person
machines/machine > factories: model title; kind Press|Lathe|Drill|Robot|Oven; power i 1 500; price r 1 300; install_date d 1999 2023; serial? code
faults/fault > machines: cause Heat|Dust|Wear|Leak; downtime i 1 300; cost r 1 500; fault_date d 2018 2023; fixer? person

countries/country: name $country; continent Africa|Asia|Europe|America|Oceania; population i 1 990; area r 1 900; motto? title
cities/city > countries: name $city; population i 10 9900; altitude i 0 3500; founding_year i 800 1980; mayor? person

schools/school: name title; district North|South|East|West|Centre; students_count i 50 2500; construction_year i 1880 2020; principal? person
clubs/club > schools: title title; activity Chess|Drama|Robotics|Choir; fee r 1 50; members_count i 4 80; meeting_day Monday|Tuesday|Thursday|Friday; coach? person

stores/store: name title; city $city; area i 50 3000; rent i 500 9000; manager? person
sales/sale > stores: product title; quantity i 1 90; revenue r 5 900; sale_date d 2020 2023; payment cash|card|voucher|invoice; discount? i 5 50

volunteers/volunteer: name person; city $city; age i 16 80; hours i 1 500; phone? phone
donations/donation > volunteers: cause Hunger|Housing|Water|Education; amount r 1 900; donation_date d 2016 2023; channel web|post|event|office; receipt? code

brands/brand: name title; country $country; founding_year i 1900 2015; stores_count i 1 500; slogan? title
shoes/shoe > brands: model title; type Sneaker|Boot|Sandal|Loafer; size i 35 47; price r 15 300; color $color; release_date d 2010 2023; designer? person

actors/actor: name person; country $country; birth_year i 1930 2004; oscars i 0 9; agent? person
roles/role > actors: character title; movie title; minutes i 1 180; fee r 1 90; type lead|support|cameo|voice; stunt_double? person

drivers/driver: name person; license_class B|C|D|E; age i 20 68; rating r 1 10; phone? phone
trips/trip > drivers: pickup $city; distance r 1 400; fare r 3 500; trip_date d 2020 2023; passengers i 1 7; tip? r 1 30

developers/developer: name person; language Python|Rust|Java|Kotlin|Ruby; experience i 0 35; salary i 2000 9900; website? site
changesets/changeset > developers: message title; lines i 1 5000; branch main|test|hotfix|docs; commit_date d 2018 2023; files i 1 90; reviewer? person

companies/company: name title; industry Energy|Mining|Retail|Media|Banking; revenue r 1 900; staff i 5 9000; ceo? person
jobs/job > companies: title title; salary i 1500 9900; contract full-time|part-time|seasonal|freelance; applicants i 0 300; post_date d 2021 2023; deadline? d 2023 2024
interviews/interview > jobs: candidate person; score i 1 100; round i 1 5; interview_date d 2021 2023; feedback? title

tenants/tenant: name person; nationality $country; income i 900 9000; age i 18 85; pet? Cat|Dog|Parrot
leases/lease > tenants: address title; deposit i 300 5000; months i 3 60; start_date d 2017 2023; type furnished|empty|shared|sublet; guarantor? person

races/race: name title; city $city; distance r 1 200; race_date d 2010 2023; sponsor? title
runners/runner > races: name person; finish_time i 15 600; age i 14 80; gender male|female|other; bib i 1 999; club? title

recipes/recipe: title title; chef person; cuisine French|Thai|Turkish|Peruvian; minutes i 5 240; calories i 50 1500; video? site
ingredients/ingredient > recipes: name Flour|Sugar|Butter|Onion|Garlic|Salt; grams i 1 900; price r 1 30; origin $country; brand? title

agents/agent: name person; agency title; commission r 1 9; deals i 0 90; mobile? phone
houses/house > agents: address title; bedrooms i 1 9; price i 50 990; construction_year i 1900 2022; condition new|renovated|worn|ruined; pool_size? i 10 90
offers/offer > houses: bidder person; amount i 40 990; offer_date d 2020 2023; financing loan|cash|trust|family; comment? title

vets/vet: name person; clinic title; experience i 1 40; city $city; phone? phone
pets/pet > vets: name title; species Cat|Dog|Rabbit|Hamster|Parrot; age i 1 20; weight r 1 60; birth_date d 2005 2022; chip? code

conferences/conference: title title; city $city; attendees i 20 9000; fee r 10 900; start_date d 2012 2023; chair? person
talks/talk > conferences: title title; speaker person; minutes i 10 90; topic Robotics|Ethics|Climate|Genetics; rating r 1 10; slides? site

channels/channel: name title; language English|Hindi|French|Arabic; subscribers i 10 9900; launch_date d 2006 2022; owner? person
videos/video > channels: title title; views i 10 9900; length r 1 90; upload_date d 2010 2023; quality low|medium|high|ultra; sponsor? title

mechanics/mechanic: name person; town $city; wage i 12 60; age i 18 66; certificate? code
bikes/bike > mechanics: model title; type road|mountain|city|cargo; gears i 1 30; price r 1 90; purchase_date d 2010 2023; lock_code? code

castles/castle: name title; region $region; towers i 1 20; construction_year i 900 1700; ghost? title
tours/tour > castles: guide person; price r 3 60; visitors i 1 80; tour_date d 2018 2023; language English|Dutch|Italian|Czech; tip? r 1 30

pilots/pilot: name person; rank captain|cadet|officer|trainee; flight_hours i 10 9000; birth_year i 1955 2000; callsign? title
planes/plane > pilots: model title; engine jet|turboprop|piston|electric; seats i 1 400; speed i 100 950; purchase_date d 1990 2022; hangar? code

gardens/garden: name title; owner person; area r 1 90; city $city; theme? Japanese|Herb|Rose
trees/tree > gardens: species Oak|Maple|Birch|Willow|Cedar; height r 1 60; age i 1 300; planting_date d 1980 2023; disease? Rust|Blight|Rot

prisons/prison: name title; state $region; cells i 20 900; security low|medium|high|maximum; director? person
inmates/inmate > prisons: name person; age i 18 80; sentence i 1 40; crime Fraud|Theft|Arson|Forgery; entry_date d 2000 2023; lawyer? person

operators/operator: name title; country $country; subscribers i 10 9900; revenue r 1 900; slogan? title
contracts/contract > operators: customer person; plan basic|family|student|premium; monthly_fee r 5 120; data_limit i 1 200; start_date d 2015 2023; phone? phone
calls/call > contracts: minutes i 1 200; cost r 1 60; call_date d 2021 2023; type local|roaming|national|video; complaint? title
"""

TEST = """
volcanoes/volcano: name title; island Java|Luzon|Honshu|Sicily|Iceland; elevation i 200 6000; summit_temperature r 10 90; nearest_village? $town
eruptions/eruption > volcanoes: strength i 1 8; ash_volume r 1 90; eruption_day d 1950 2020; hazard minor|moderate|severe|extreme; casualties i 0 900; observer? person

glaciers/glacier: name title; mountain_range Alps|Andes|Caucasus|Rockies; thickness i 20 900; retreat_rate r 1 60; expedition_leader? person
ice_cores/ice_core > glaciers: depth i 5 900; dust_level r 1 50; drilling_day d 1980 2022; storage freezer|vault|truck|tent; laboratory? title

beehives/beehive: nest_type Langstroth|Warre|Skep|Topbar; frames i 4 40; keeper person; honey_yield r 1 80; queen_mark? $dye
inspections/inspection > beehives: mites i 0 90; mood calm|nervous|angry|swarming; brood_share r 1 100; checking_day d 2018 2023; treatment? Thymol|Oxalic|Formic

observatories/observatory: name title; desert Atacama|Gobi|Sahara|Mojave; mirrors i 1 30; dome_height r 5 70; astronomer? person
comets/comet > observatories: designation code; brightness r 1 20; orbit_years i 3 900; discovery_day d 1950 2023; tail dust|ion|double|faint; namesake? person

breweries/brewery: name title; valley Elbe|Loire|Tagus|Mosel|Rhone; kettles i 1 40; yearly_liters i 100 9900; brewmaster? person
beers/beer > breweries: label_text title; malt Pale|Amber|Smoked|Roasted; bitterness i 5 120; alcohol r 2 12; brewing_day d 2015 2023; hop_variety? Saaz|Citra|Cascade

bridges/bridge: name title; river Danube|Rhine|Volga|Mekong|Seine; span i 30 1900; toll r 1 20; architect? person
crossings/crossing > bridges: vehicle truck|bus|van|tram; axles i 2 9; load_tons r 1 60; crossing_day d 2019 2023; penalty? i 20 500

quarries/quarry: name title; stone Marble|Granite|Slate|Basalt; blast_count i 1 300; pit_depth r 2 90; foreman? person
blocks/block > quarries: grade_mark code; volume r 1 50; cracks i 0 30; cutting_day d 2010 2023; finish polished|rough|honed|flamed; sculptor? person

lighthouses/lighthouse: name title; coast Biscay|Baltic|Adriatic|Aegean; steps i 40 400; beam_range r 5 45; keeper_family? title
lamps/lamp > lighthouses: bulb halogen|xenon|diode|arc; wattage i 50 2000; glow_hours i 100 9900; fitting_day d 1990 2023; lens_maker? title

theaters/theater: name title; quarter Harbor|Market|Castle|Garden; balconies i 1 6; stage_width r 5 40; patron? title
plays/play > theaters: script title; playwright person; acts i 1 7; mood_tag tragic|comic|absurd|musical; premiere d 1995 2023; applause r 1 60; understudy? person
costumes/costume > plays: fabric Silk|Velvet|Linen|Wool; buttons i 0 60; sewing_hours r 1 90; stitching_day d 2000 2023; moth_damage? light|heavy|total

orchards/orchard: name title; slope north|south|east|west; hectares r 1 90; ladders i 1 80; agronomist? person
pears/pear > orchards: cultivar title; ripeness green|ripe|soft|overripe; crates i 1 900; sugar r 5 20; picking_day d 2016 2023; pest? Aphid|Moth|Scab

satellites/satellite: name title; orbit polar|lunar|equatorial|solar; mass i 10 9000; panel_span r 1 50; launch_pad? code
signals/signal > satellites: band Alpha|Beta|Gamma|Delta; frequency r 1 90; noise i 1 500; reception_day d 2015 2023; decoder? person

caves/cave: name title; rock limestone|sandstone|lava|gypsum; chambers i 1 90; humidity r 40 100; discoverer? person
bats/bat > caves: ring_number code; fur $dye; wingspan r 15 170; pups i 0 9; ringing_day d 2010 2023; parasite? Mite|Flea|Tick

tournaments/tournament: name title; game Go|Bridge|Poker|Checkers; prize i 100 9900; tables_count i 2 90; arbiter? person
matches/match > tournaments: winner person; loser person; moves i 10 300; clock_minutes r 1 90; playing_day d 2012 2023; opening Sicilian|Gambit|English|Dutch; protest? title

vineyards/vineyard: name title; soil chalk|clay|gravel|loam; rows_count i 10 900; rainfall r 100 990; cellar_master? person
wines/wine > vineyards: cuvee title; grape Merlot|Syrah|Riesling|Malbec; vintage i 1980 2022; tannin r 1 10; bottles i 100 9900; importer? title

dams/dam: name title; basin Nile|Congo|Indus|Amazon|Niger; turbines i 1 40; wall_height r 10 300; engineer? person
floods/flood > dams: peak_flow i 100 9900; severity mild|serious|grave|historic; sandbags i 0 5000; flood_day d 1970 2023; damage r 1 900; rescuer? person

bakeries/bakery: name title; alley Mill|Church|Station|Bridge; ovens i 1 20; flour_sacks i 5 400; apprentice? person
cakes/cake > bakeries: flavor Lemon|Cocoa|Vanilla|Hazelnut; layers i 1 9; sweetness r 1 10; baking_day d 2020 2023; candles? i 1 90

telescopes/telescope: maker_name title; mount fork|dobson|equatorial|alt; aperture i 50 900; focal_ratio r 3 15; borrower? person
nebulae/nebula > telescopes: catalog_entry code; shape ring|spiral|cloud|shell; magnitude r 1 16; exposures i 1 200; photo_day d 2005 2023; filter_dye? $dye

orchestras/orchestra: name title; hall Opera|Palace|Forum|Abbey; musicians i 20 150; grant_sum r 1 90; conductor? person
concerts/concert > orchestras: symphony title; encore_count i 0 6; ticket_income r 1 90; performance_day d 2010 2023; soloist? person; broadcast radio|stream|tape|live

aquariums/aquarium: name title; harbor Genoa|Osaka|Lisbon|Bergen; tanks i 3 120; liters r 1 900; biologist? person
fish/fish > aquariums: family Goby|Wrasse|Tang|Bass; stripes i 0 20; body_length r 2 190; hatching_day d 2012 2023; food pellets|krill|algae|shrimp; scar? fin|tail|gill

workshops/workshop: name title; craft Pottery|Weaving|Carving|Glass; benches i 2 60; lease_cost i 200 4000; guild? title
vases/vase > workshops: glaze $dye; firing_heat i 600 1400; neck_width r 1 40; firing_day d 2008 2023; motif fish|flower|spiral|bird; collector? person
"""
