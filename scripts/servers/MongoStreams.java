import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.MongoVersion;
import de.bwaldvogel.mongo.backend.memory.MemoryBackend;
import java.util.List;

/** A server that speaks MongoDB's protocol, in memory, with change streams: {@code java -cp jars MongoStreams.java HOST PORT}. */
class MongoStreams {
    public static void main(String[] arguments) {
        // Its own version numbers are too old for today's clients.
        MongoVersion version = new MongoVersion() {
            public List<Integer> getVersionArray() {
                return List.of(5, 0, 0);
            }

            public int getWireVersion() {
                return 13;
            }
        };
        MongoServer server = new MongoServer(new MemoryBackend().version(version));
        server.enableOplog(); // what change streams read
        server.bind(arguments[0], Integer.parseInt(arguments[1]));
        Runtime.getRuntime().addShutdownHook(new Thread(server::shutdownNow));
    }
}
